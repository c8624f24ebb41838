//! Hands a model its named weights: random ones, or those of files.

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use rand_distr::{Distribution, Normal};

use crate::random::Random;

/// A source of the weights of a pretrained model, under their Hugging Face names.
pub trait Weights {
    /// Takes out a weight. Returns `None` where there is none of that name.
    fn take(&mut self, name: &str) -> Result<Option<Tensor>>;

    /// Returns the names of the weights that nobody took.
    fn left(&self) -> Vec<String>;
}

/// Hands a model its weights, and keeps them in the order in which it asked for them.
pub struct Parameters {
    weights: NamedTensors,
    stored: Vec<DType>,
    trained: NamedVariables,
    source: Source,
    dtype: DType,
    device: Device,
    frozen: bool,
}

enum Source {
    Random(Box<Random>),
    Weights(Box<dyn Weights>),
}

/// The standard deviation of random weights, as Llama's.
const DEVIATION: f64 = 0.02;

impl Parameters {
    /// Draws weights from a random stream, to be trained.
    pub fn random(random: Random, dtype: DType, device: &Device) -> Self {
        Self::new(Source::Random(Box::new(random)), dtype, device, false)
    }

    /// Takes the weights of a trained model, to be trained further or `frozen`.
    pub fn of(weights: Box<dyn Weights>, dtype: DType, device: &Device, frozen: bool) -> Self {
        Self::new(Source::Weights(weights), dtype, device, frozen)
    }

    fn new(source: Source, dtype: DType, device: &Device, frozen: bool) -> Self {
        Self {
            weights: Vec::new(),
            stored: Vec::new(),
            trained: Vec::new(),
            source,
            dtype,
            device: device.clone(),
            frozen,
        }
    }

    /// Returns a matrix `[rows, columns]`: normally distributed, or as the source has it.
    pub fn matrix(
        &mut self,
        name: impl Into<String>,
        rows: usize,
        columns: usize,
    ) -> Result<Tensor> {
        let normal = Normal::new(0.0, DEVIATION)?;
        let shape = [rows, columns];
        self.take(name.into(), &shape, |random| normal.sample(random))
    }

    /// Returns the weight `[width]` of a norm: ones, or as the source has it.
    pub fn scale(&mut self, name: impl Into<String>, width: usize) -> Result<Tensor> {
        self.take(name.into(), &[width], |_| 1.0)
    }

    /// Returns a bias `[width]`: zeros, or as the source has it.
    pub fn bias(&mut self, name: impl Into<String>, width: usize) -> Result<Tensor> {
        self.take(name.into(), &[width], |_| 0.0)
    }

    /// Returns a weight of the source, if it has one of this name, without keeping it.
    pub fn given(&mut self, name: &str, shape: &[usize]) -> Result<Option<Given>> {
        let Source::Weights(weights) = &mut self.source else {
            return Ok(None);
        };
        let Some(tensor) = weights.take(name)? else {
            return Ok(None);
        };
        ensure!(
            tensor.dims() == shape,
            "{name} has the shape {:?}, where the configuration asks for {shape:?}",
            tensor.dims()
        );
        Ok(Some(Given {
            stored: tensor.dtype(),
            tensor: cast(name, &tensor, self.dtype)?.to_device(&self.device)?,
        }))
    }

    /// Keeps a weight under a name, and returns it as it is trained or used.
    pub fn keep(&mut self, name: impl Into<String>, given: Given) -> Result<Tensor> {
        let name = name.into();
        let mut tensor = given.tensor.contiguous()?;
        if !self.frozen {
            let variable = Var::from_tensor(&tensor)?;
            tensor = variable.as_tensor().clone();
            self.trained.push((name.clone(), variable));
        }
        self.weights.push((name, tensor.clone()));
        self.stored.push(given.stored);
        Ok(tensor)
    }

    fn take(
        &mut self,
        name: String,
        shape: &[usize],
        initial: impl Fn(&mut Random) -> f64,
    ) -> Result<Tensor> {
        let given = match self.given(&name, shape)? {
            Some(given) => given,
            None => {
                let Source::Random(random) = &mut self.source else {
                    bail!("there is no tensor {name}");
                };
                let values = values(&name, shape, || initial(random))?;
                let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
                Given {
                    stored: self.dtype,
                    tensor: tensor.to_dtype(self.dtype)?.to_device(&self.device)?,
                }
            }
        };
        self.keep(name, given)
    }

    /// Returns what was kept. A tensor of the source that the model did not ask for is an error.
    pub fn finish(self) -> Result<Kept> {
        if let Source::Weights(weights) = &self.source {
            let left = weights.left();
            if let Some(name) = left.iter().min() {
                bail!(
                    "a model of this configuration has no tensor {name}{}",
                    match left.len() {
                        1 => String::new(),
                        more => format!(", nor {} others that are there", more - 1),
                    }
                );
            }
        }
        Ok(Kept {
            weights: self.weights,
            stored: self.stored,
            trained: self.trained,
        })
    }
}

/// A weight of the source, in the type in which the model computes.
pub struct Given {
    pub tensor: Tensor,
    stored: DType,
}

/// The weights of a model.
pub struct Kept {
    /// All weights, in the order in which the model asked for them.
    pub weights: NamedTensors,
    /// The type in which each of them was stored.
    pub stored: Vec<DType>,
    /// The weights that are trained.
    pub trained: NamedVariables,
}

/// The smallest number that f16 rounds to infinity: its largest is 65504.
const TOO_LARGE_FOR_F16: f32 = 65_520.0;

/// Converts a tensor to another type. Values beyond the range of f16 are an error.
pub fn cast(name: &str, tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    if dtype == DType::F16 && tensor.dtype() != DType::F16 {
        let magnitudes = tensor.to_dtype(DType::F32)?.abs()?;
        let largest: f32 = magnitudes.max_all()?.to_scalar()?;
        ensure!(
            largest < TOO_LARGE_FOR_F16 || largest.is_infinite(),
            "{name} has values up to {largest}, and f16 ends at 65504: use --dtype bf16 or --dtype f32"
        );
    }
    Ok(tensor.to_dtype(dtype)?)
}

/// Returns initial values of a tensor, or an error where there is no memory for them.
pub fn values(name: &str, shape: &[usize], mut value: impl FnMut() -> f64) -> Result<Vec<f64>> {
    let count = (shape.iter()).try_fold(1usize, |product, &size| product.checked_mul(size));
    let mut values = Vec::new();
    let fits = count.is_some_and(|count| values.try_reserve_exact(count).is_ok());
    ensure!(fits, "there is no memory for {name} of the shape {shape:?}");
    values.extend((0..count.unwrap_or(0)).map(|_| value()));
    Ok(values)
}

/// Tensors under their names.
pub type NamedTensors = Vec<(String, Tensor)>;
/// Variables under their names.
pub type NamedVariables = Vec<(String, Var)>;
