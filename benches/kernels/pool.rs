//! What candle has taken of a device's memory, as the driver's pool counts it.

use std::ffi::c_void;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute, CUmemoryPool};
use candle_core::{CudaDevice, Result};

pub struct Pool {
    device: CudaDevice,
    pool: CUmemoryPool,
}

impl Pool {
    /// The pool that candle allocates from.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        if !context.has_async_alloc() {
            candle_core::bail!("this device has no memory pools, and its memory is not counted");
        }
        Ok(Self {
            device: device.clone(),
            // SAFETY: the device is one that cudarc was given by the driver.
            pool: unsafe { device::get_mem_pool(context.cu_device()) }.w()?,
        })
    }

    /// The bytes that `run` has taken at its highest beyond what was taken before it, and those that
    /// are still taken while what it returns is held.
    pub fn taken<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<(u64, u64, T)> {
        self.device.cuda_stream().synchronize().w()?;
        let before = self.read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        self.reset_highest()?;
        let result = run()?;
        self.device.cuda_stream().synchronize().w()?;
        let highest = self.read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
        let after = self.read(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let beyond = |bytes: u64| bytes.saturating_sub(before);
        Ok((beyond(highest.max(after)), beyond(after), result))
    }

    fn read(&self, attribute: CUmemPool_attribute) -> Result<u64> {
        let mut bytes = 0u64;
        let value = (&raw mut bytes).cast::<c_void>();
        // SAFETY: the pool is the device's, and the attributes that are asked for are of 64 bits.
        unsafe { mem_pool::get_attribute(self.pool, attribute, value) }.w()?;
        Ok(bytes)
    }

    fn reset_highest(&self) -> Result<()> {
        let mut zero = 0u64;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        let value = (&raw mut zero).cast::<c_void>();
        // SAFETY: as in `read`.
        unsafe { mem_pool::set_attribute(self.pool, attribute, value) }.w()
    }
}
