//! The named weights of a model.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var, safetensors};
use rand_distr::{Distribution, Normal};

use crate::random::Random;

/// Weights by their Hugging Face names, in the order in which the model asked for them.
pub struct Parameters {
    named: Vec<(String, Var)>,
    source: Source,
}

enum Source {
    Random { random: Box<Random>, dtype: DType },
    Tensors(HashMap<String, Tensor>),
}

/// Standard deviation of the first weights, as Llama's.
const DEVIATION: f64 = 0.02;

impl Parameters {
    /// First weights from a random stream.
    pub fn random(random: Random, dtype: DType) -> Self {
        Self {
            named: Vec::new(),
            source: Source::Random {
                random: Box::new(random),
                dtype,
            },
        }
    }

    /// Weights from a safetensors file.
    pub fn load(path: &Path) -> Result<Self> {
        let tensors = safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("cannot read the weights {}", path.display()))?;
        Ok(Self {
            named: Vec::new(),
            source: Source::Tensors(tensors),
        })
    }

    /// A matrix: normally distributed, or as the file has it.
    pub fn matrix(&mut self, name: impl Into<String>, rows: usize, columns: usize) -> Result<Var> {
        self.take(name.into(), &[rows, columns], |random, count| {
            let normal = Normal::new(0.0, DEVIATION)?;
            Ok((0..count).map(|_| normal.sample(random)).collect())
        })
    }

    /// The weight of a norm: ones, or as the file has it.
    pub fn scale(&mut self, name: impl Into<String>, width: usize) -> Result<Var> {
        self.take(name.into(), &[width], |_, count| Ok(vec![1.0; count]))
    }

    fn take(
        &mut self,
        name: String,
        shape: &[usize],
        initial: impl Fn(&mut Random, usize) -> Result<Vec<f64>>,
    ) -> Result<Var> {
        let tensor = match &mut self.source {
            Source::Random { random, dtype } => {
                let values = initial(random, shape.iter().product())?;
                Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(*dtype)?
            }
            Source::Tensors(tensors) => {
                let Some(tensor) = tensors.remove(&name) else {
                    bail!("there is no tensor {name}");
                };
                ensure!(
                    tensor.dims() == shape,
                    "{name} has the shape {:?}, where config.json asks for {shape:?}",
                    tensor.dims()
                );
                tensor
            }
        };
        let variable = Var::from_tensor(&tensor)?;
        self.named.push((name, variable.clone()));
        Ok(variable)
    }

    /// The weights with their names; a tensor of the file that the model did not ask for is an error.
    pub fn finish(self) -> Result<Vec<(String, Var)>> {
        if let Source::Tensors(left) = &self.source
            && let Some(name) = left.keys().min()
        {
            bail!("the model of config.json has no tensor {name}");
        }
        Ok(self.named)
    }
}
