//! The named weights of a model.

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use rand_distr::{Distribution, Normal};

use crate::random::Random;

/// Where the weights of a pretrained model lie, under their Hugging Face names.
pub trait Weights {
    /// A weight, taken out; nothing where there is none of that name.
    fn take(&mut self, name: &str) -> Result<Option<Tensor>>;

    /// The names of weights that nobody took.
    fn left(&self) -> Vec<String>;
}

/// Hands a model its weights, and keeps them in the order in which it asked for them.
pub struct Parameters {
    weights: Vec<(String, Tensor)>,
    trained: Vec<(String, Var)>,
    source: Source,
    dtype: DType,
    device: Device,
    frozen: bool,
}

enum Source {
    Random(Box<Random>),
    Weights(Box<dyn Weights>),
}

/// Standard deviation of the first weights, as Llama's.
const DEVIATION: f64 = 0.02;

impl Parameters {
    /// First weights from a random stream, to be trained.
    pub fn random(random: Random, dtype: DType, device: &Device) -> Self {
        Self::new(Source::Random(Box::new(random)), dtype, device, false)
    }

    /// The weights of a trained model, to be trained further or `frozen`.
    pub fn of(weights: Box<dyn Weights>, dtype: DType, device: &Device, frozen: bool) -> Self {
        Self::new(Source::Weights(weights), dtype, device, frozen)
    }

    fn new(source: Source, dtype: DType, device: &Device, frozen: bool) -> Self {
        Self {
            weights: Vec::new(),
            trained: Vec::new(),
            source,
            dtype,
            device: device.clone(),
            frozen,
        }
    }

    /// A matrix: normally distributed, or as the source has it.
    pub fn matrix(
        &mut self,
        name: impl Into<String>,
        rows: usize,
        columns: usize,
    ) -> Result<Tensor> {
        self.take(name.into(), &[rows, columns], |random, count| {
            let normal = Normal::new(0.0, DEVIATION)?;
            Ok((0..count).map(|_| normal.sample(random)).collect())
        })
    }

    /// The weight of a norm: ones, or as the source has it.
    pub fn scale(&mut self, name: impl Into<String>, width: usize) -> Result<Tensor> {
        self.take(name.into(), &[width], |_, count| Ok(vec![1.0; count]))
    }

    /// A bias: zeros, or as the source has it.
    pub fn bias(&mut self, name: impl Into<String>, width: usize) -> Result<Tensor> {
        self.take(name.into(), &[width], |_, count| Ok(vec![0.0; count]))
    }

    /// Leaves a weight out that the source may have all the same.
    pub fn ignore(&mut self, name: &str) -> Result<()> {
        if let Source::Weights(weights) = &mut self.source {
            weights.take(name)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        name: String,
        shape: &[usize],
        initial: impl Fn(&mut Random, usize) -> Result<Vec<f64>>,
    ) -> Result<Tensor> {
        let tensor = match &mut self.source {
            Source::Random(random) => {
                let values = initial(random, shape.iter().product())?;
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            Source::Weights(weights) => {
                let Some(tensor) = weights.take(&name)? else {
                    bail!("there is no tensor {name}");
                };
                ensure!(
                    tensor.dims() == shape,
                    "{name} has the shape {:?}, where the configuration asks for {shape:?}",
                    tensor.dims()
                );
                tensor
            }
        };
        let mut tensor = tensor
            .to_dtype(self.dtype)?
            .to_device(&self.device)?
            .contiguous()?;
        if !self.frozen {
            let variable = Var::from_tensor(&tensor)?;
            tensor = variable.as_tensor().clone();
            self.trained.push((name.clone(), variable));
        }
        self.weights.push((name, tensor.clone()));
        Ok(tensor)
    }

    /// All weights and those that are trained, with their names; a tensor of the source that the model did not ask for
    /// is an error.
    pub fn finish(self) -> Result<(NamedTensors, NamedVariables)> {
        if let Source::Weights(weights) = &self.source
            && let Some(name) = weights.left().into_iter().min()
        {
            bail!("a model of this configuration has no tensor {name}");
        }
        Ok((self.weights, self.trained))
    }
}

/// Tensors with their names.
pub type NamedTensors = Vec<(String, Tensor)>;
/// Variables with their names.
pub type NamedVariables = Vec<(String, Var)>;
