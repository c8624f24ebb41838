//! What a loss keeps in the memory of devices from one batch to the next.

/// The token sets on every device that the loss has been used on; shared by the loss's clones.
#[derive(Clone, Default)]
pub(super) struct Residence {
    #[cfg(feature = "cuda")]
    sets: std::sync::Arc<std::sync::Mutex<cuda::Sets>>,
}

impl std::fmt::Debug for Residence {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Residence").finish_non_exhaustive()
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::collections::HashMap;
    use std::sync::{Arc, PoisonError};

    use candle_core::CudaDevice;
    use candle_core::cuda_backend::DeviceId;

    use super::Residence;
    use crate::backend::cuda::dense::DeviceSets;
    use crate::{Result, TokenSets};

    pub(super) type Sets = HashMap<DeviceId, Arc<DeviceSets>>;

    impl Residence {
        /// The token sets of the loss on this device, uploaded at the first call. Clones of the loss
        /// may use them from other threads: [`DeviceSets`] sees to the order of their streams.
        pub fn sets(&self, device: &CudaDevice, sets: &TokenSets) -> Result<Arc<DeviceSets>> {
            let mut resident = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = resident.get(&device.id()) {
                return Ok(found.clone());
            }
            let uploaded = Arc::new(DeviceSets::new(device, sets)?);
            resident.insert(device.id(), uploaded.clone());
            Ok(uploaded)
        }
    }
}
