use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, safetensors::MmapedSafetensors};
use safetensors::Dtype;

use super::described;
use crate::{io::binary, model::Weights};

/// Weights in safetensors files, which are memory-mapped and read when they are taken.
pub struct SafetensorsWeights {
    files: Vec<(PathBuf, MmapedSafetensors)>,
    /// The tensors that were not taken yet, by the names that a model asks for.
    left: BTreeMap<String, Stored>,
}

/// A tensor that was not taken yet.
struct Stored {
    file: usize,
    /// Its name in the file.
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl SafetensorsWeights {
    /// Memory-maps the files. `name` turns the name of a tensor in its file into the one that a model asks for.
    pub fn open(paths: &[PathBuf], name: impl Fn(&str) -> String) -> Result<Self> {
        let mut files = Vec::new();
        let mut left: BTreeMap<String, Stored> = BTreeMap::new();
        for path in paths {
            binary::open(path)?;
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

    /// Returns the type of a tensor, if candle has that type.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.left.get(name)?.dtype.try_into().ok()
    }

    /// Returns the shapes of the tensors, by the names that a model asks for.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        (self.left.iter()).map(|(name, stored)| (name.as_str(), stored.shape.as_slice()))
    }

    /// Returns the names of the tensors in their files, each with its file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Path)> {
        (self.left.values())
            .map(|stored| (stored.name.as_str(), self.files[stored.file].0.as_path()))
    }

    /// Describes the files in a few words.
    pub fn described(&self) -> String {
        let kinds = self
            .left
            .values()
            .map(|stored| format!("{:?}", stored.dtype));
        described(self.files.iter().map(|(path, _)| path.as_path()), kinds)
    }
}

/// Tells whether a tensor holds the rotary frequencies, which old checkpoints have and which follow from the
/// configuration.
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
