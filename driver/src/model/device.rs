//! Opens the device that `--device` names.

use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
use candle_core::Device;

/// Values of `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, where there is one that can be used, else the processor. Several processes that one launcher starts
    /// on a machine take one GPU each.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens the device. A GPU that was named and cannot be used is an error.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(gpu(local_rank())
                .or_else(|_| gpu(0))
                .unwrap_or_else(|error| {
                    if cfg!(feature = "cuda") {
                        eprintln!(
                            "computing on the processor, because no GPU can be used: {error:#}"
                        );
                    }
                    Device::Cpu
                })),
            Self::Cuda(number) => {
                gpu(number).with_context(|| format!("cannot use the device cuda:{number}"))
            }
        }
    }
}

/// The environment variables in which launchers say how many of their processes on this machine come before this one.
const LOCAL_RANKS: [&str; 3] = [
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "SLURM_LOCALID",
];

/// Returns the number of this process among those that a launcher started on this machine; 0 where none did.
fn local_rank() -> usize {
    let said = LOCAL_RANKS.map(|name| std::env::var(name).ok()?.parse().ok());
    said.into_iter().flatten().next().unwrap_or(0)
}

fn gpu(number: usize) -> Result<Device> {
    if !cfg!(feature = "cuda") {
        bail!("this msl knows no GPU: build it with --features cuda");
    }
    Device::new_cuda(number).context("no NVIDIA GPU of this number answers")
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            _ => {}
        }
        let number = text
            .strip_prefix("cuda:")
            .and_then(|number| number.parse().ok());
        let number = number.context("expected auto, cpu or cuda:N, such as cuda:0")?;
        Ok(Self::Cuda(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_candle_names_them() {
        let parse = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(parse("auto").unwrap(), DeviceChoice::Auto);
        assert_eq!(parse("cpu").unwrap(), DeviceChoice::Cpu);
        assert_eq!(parse("cuda:3").unwrap(), DeviceChoice::Cuda(3));
        for wrong in ["", "cuda", "cuda:", "cuda:x", "cuda:-1", "gpu", "CPU"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn without_the_feature_a_gpu_is_an_error_in_words_and_auto_is_the_processor() {
        let error = format!("{:#}", DeviceChoice::Cuda(1).open().unwrap_err());
        assert!(
            error.contains("cuda:1") && error.contains("--features cuda"),
            "{error}"
        );
        assert!(DeviceChoice::Auto.open().unwrap().is_cpu());
    }
}
