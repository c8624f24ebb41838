//! What a binary with the feature `cuda` does where there is no GPU: it starts, and says so.
#![cfg(feature = "cuda")]

use candle_core::Device;

#[test]
fn without_a_driver_a_device_is_an_error_value() {
    match Device::new_cuda(0) {
        Ok(_) => println!("there is a GPU here: see tests/gpu"),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("CUDA_ERROR_NO_DEVICE"), "{text}");
        }
    }
}
