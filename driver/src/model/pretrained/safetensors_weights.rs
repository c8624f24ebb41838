use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, safetensors::MmapedSafetensors};
use safetensors::Dtype;

use super::described;
use crate::{data::input, model::Weights};

/// Weights in safetensors files, which are mapped and read weight by weight.
pub struct SafetensorsWeights {
    files: Vec<(PathBuf, MmapedSafetensors)>,
    /// What was not taken yet, by the name that a model asks for it by.
    left: BTreeMap<String, Stored>,
}

/// Where a tensor is.
struct Stored {
    file: usize,
    /// What its file calls it.
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl SafetensorsWeights {
    /// Maps the files. `name` gives the name that a model asks for a tensor by, from the one that its file has.
    pub fn open(paths: &[PathBuf], name: impl Fn(&str) -> String) -> Result<Self> {
        let mut files = Vec::new();
        let mut left: BTreeMap<String, Stored> = BTreeMap::new();
        for path in paths {
            input::open(path)?;
            // SAFETY: the files are only read, and copied out of weight by weight while the model is made. A file that
            // another process cuts short meanwhile would end this one, as it would any that maps files.
            let mapped = unsafe { MmapedSafetensors::new(path) }
                .with_context(|| format!("{} is no file of safetensors", path.display()))?;
            for (stored, tensor) in mapped.tensors() {
                if is_computed(&stored) {
                    continue;
                }
                let stored = Stored {
                    file: files.len(),
                    shape: tensor.shape().to_vec(),
                    dtype: tensor.dtype(),
                    name: stored,
                };
                let (found, file) = (stored.name.clone(), stored.file);
                if let Some(other) = left.insert(name(&found), stored) {
                    bail!(
                        "the tensor {} of {} is in {} too, as {found}",
                        other.name,
                        paths[other.file].display(),
                        paths[file].display()
                    );
                }
            }
            files.push((path.clone(), mapped));
        }
        Ok(Self { files, left })
    }

    /// The type of a tensor, if there is one that candle knows.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.left.get(name)?.dtype.try_into().ok()
    }

    /// The shapes of the tensors, by the names that a model asks for them by.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        (self.left.iter()).map(|(name, stored)| (name.as_str(), stored.shape.as_slice()))
    }

    /// The tensors by the names that their files have, each with its file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Path)> {
        (self.left.values())
            .map(|stored| (stored.name.as_str(), self.files[stored.file].0.as_path()))
    }

    /// What the files are, in a few words.
    pub fn described(&self) -> String {
        let kinds = self
            .left
            .values()
            .map(|stored| format!("{:?}", stored.dtype));
        described(self.files.iter().map(|(path, _)| path.as_path()), kinds)
    }
}

/// Old checkpoints hold the rotary frequencies, which follow from the configuration.
fn is_computed(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

impl Weights for SafetensorsWeights {
    fn take(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(stored) = self.left.remove(name) else {
            return Ok(None);
        };
        let (path, file) = &self.files[stored.file];
        if !matches!(
            stored.dtype,
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16
        ) {
            bail!(
                "the tensor {} of {} has the type {:?}, expected F32, F16 or BF16: quantised weights are read from GGUF \
                 files alone",
                stored.name,
                path.display(),
                stored.dtype
            );
        }
        let tensor = file.load(&stored.name, &Device::Cpu);
        (tensor.map(Some)).with_context(|| {
            format!(
                "cannot read the tensor {} of {}",
                stored.name,
                path.display()
            )
        })
    }

    fn left(&self) -> Vec<String> {
        self.left
            .values()
            .map(|stored| stored.name.clone())
            .collect()
    }
}
