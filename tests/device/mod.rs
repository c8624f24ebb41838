//! Where tests run that can run on either device.

use std::sync::OnceLock;

use candle_core::{DType, Device};

/// Where the tests run: on the CPU, unless `CANDLE_TRIE_DEVICE` is `cuda`, and then not at all where
/// there is no GPU. f64 is for the CPU alone.
pub fn device(dtype: DType) -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| match std::env::var("CANDLE_TRIE_DEVICE") {
        Err(_) => Device::Cpu,
        Ok(name) if name == "cuda" => Device::new_cuda(0).expect("a GPU, and the feature cuda"),
        Ok(name) => panic!("CANDLE_TRIE_DEVICE is {name}, which is not cuda"),
    });
    match dtype {
        DType::F64 => Device::Cpu,
        _ => device.clone(),
    }
}
