//! A cache of the token sets of a loss in device memory.

/// A cache of the token sets on every device that the loss has been used on. Clones of the loss share it.
#[derive(Clone, Default)]
pub(super) struct DeviceSetCache {
    #[cfg(feature = "cuda")]
    sets: std::sync::Arc<std::sync::Mutex<cuda::Sets>>,
}

impl std::fmt::Debug for DeviceSetCache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("DeviceSetCache")
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::collections::HashMap;
    use std::sync::{Arc, PoisonError};

    use candle_core::CudaDevice;
    use candle_core::cuda_backend::DeviceId;

    use super::DeviceSetCache;
    use crate::backend::cuda::sets::DeviceSets;
    use crate::{Result, TokenSets};

    pub(super) type Sets = HashMap<DeviceId, Arc<DeviceSets>>;

    impl DeviceSetCache {
        /// Returns the token sets of the loss on this device, and uploads them at the first call. Clones of the loss
        /// may use them from other threads: [`DeviceSets`] orders their streams.
        pub fn on(&self, device: &CudaDevice, sets: &TokenSets) -> Result<Arc<DeviceSets>> {
            let mut cached = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = cached.get(&device.id()) {
                return Ok(found.clone());
            }
            let uploaded = Arc::new(DeviceSets::new(device, sets)?);
            cached.insert(device.id(), uploaded.clone());
            Ok(uploaded)
        }
    }
}
