//! Chooses the type of a model's weights, which is the type that its layers compute in.

use anyhow::Result;
use candle_core::{DType, Device};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Values of `--dtype`. Sums, norms, softmaxes, adapters and the optimizer are always in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits: the fastest on a processor
    #[default]
    F32,
    /// 16 bits, with 11 bits of precision; gradients are scaled to stay within its range
    F16,
    /// 16 bits, with 8 bits of precision and the range of f32; GPUs have it from compute capability 8.0 on
    Bf16,
    /// As the model's files have it; f32 for a quantised GGUF file
    Stored,
}

/// The device and the type that a model is loaded for.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// The type; `None` for that of training.
    pub precision: Option<Precision>,
}

impl From<&Device> for Place {
    fn from(device: &Device) -> Self {
        Self {
            device: device.clone(),
            precision: None,
        }
    }
}

impl Precision {
    /// Returns the type to compute in, for a model whose files are in `stored`. A device that cannot compute in it is
    /// an error.
    pub fn dtype(self, stored: DType, device: &Device) -> Result<DType> {
        let dtype = match (self, stored) {
            (Self::F16, _) | (Self::Stored, DType::F16) => DType::F16,
            (Self::Bf16, _) | (Self::Stored, DType::BF16) => DType::BF16,
            _ => DType::F32,
        };
        check(dtype, device)?;
        Ok(dtype)
    }
}

#[cfg(feature = "cuda")]
fn check(dtype: DType, device: &Device) -> Result<()> {
    if let (DType::BF16, Device::Cuda(device)) = (dtype, device) {
        let (major, minor) = device.cuda_stream().context().compute_capability()?;
        anyhow::ensure!(
            major >= 8,
            "the GPU has the compute capability {major}.{minor}, and bf16 needs 8.0: use --dtype f16 or f32"
        );
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn check(_: DType, _: &Device) -> Result<()> {
    Ok(())
}
