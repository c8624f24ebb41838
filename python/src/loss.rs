//! The loss and its forward passes.

use std::sync::{Mutex, PoisonError};

use candle_trie::host::{self, LinearGradients, LinearInput};
use candle_trie::raw;
use candle_trie::{
    AdaptiveStrategy, Bear, Convention, MaskedSoftmaxLoss, Reduction, Scope, Statistics,
    Temperature, TemperatureState,
};
use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::frozen_head::FrozenRows;
use crate::memory::{Dtype, RawMatrix, slice, slice_mut, with_element};
use crate::python_error;
use crate::rows::Rows;
use crate::threads::{locked_on_threads, on_threads};
use crate::trie::Sets;

/// The fields of a [`Statistics`].
type Fields = [f64; Statistics::LENGTH];

/// A loss: token sets, temperature and convention.
#[pyclass(frozen)]
pub struct Loss(Mutex<MaskedSoftmaxLoss>);

/// The settings of the adaptive temperature: scope, eta, alpha, initial, minimum, maximum, warm-up, allow_degenerate.
type Adaptive = (String, f64, f64, f64, f64, f64, u64, bool);

#[pymethods]
impl Loss {
    /// `reduction` is "mean", "mean_branching", "sum", "none" or a number
    /// that the sum is divided by; None for the published convention.
    #[new]
    fn new(
        sets: Sets,
        temperature: f64,
        adaptive: Option<Adaptive>,
        bear: Option<(u32, f64, f64)>,
        reduction: Option<(String, f64)>,
        times_temperature: Option<bool>,
    ) -> PyResult<Self> {
        let sets = sets.token_sets()?;
        let temperature = match adaptive {
            None => Temperature::fixed(temperature),
            Some(settings) => strategy(settings)?.into(),
        };
        let mut loss = MaskedSoftmaxLoss::new(sets, temperature).map_err(python_error)?;
        if let Some((beams, lambda, xi)) = bear {
            let bear = Bear { beams, lambda, xi };
            loss = loss.with_bear(bear).map_err(python_error)?;
        }
        let convention = Convention {
            reduction: match reduction {
                None => loss.convention().reduction,
                Some((name, denominator)) => named_reduction(&name, denominator)?,
            },
            times_temperature: times_temperature.unwrap_or(loss.convention().times_temperature),
        };
        let loss = loss.with_convention(convention).map_err(python_error)?;
        Ok(Self(Mutex::new(loss)))
    }

    /// Returns τ, and the number of steps taken.
    #[getter]
    fn state(&self) -> PyResult<(f64, u64)> {
        let state = self.locked(|loss| Ok(loss.temperature()?.state()))?;
        Ok((state.value, state.step))
    }

    fn restore(&self, value: f64, step: u64) -> PyResult<()> {
        self.locked(|loss| {
            loss.temperature_mut()?
                .restore(TemperatureState { value, step })
        })
    }

    /// Returns the tables of the token sets for a device, as u32; None for a whole vocabulary.
    fn set_tables<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let loss = self.snapshot();
        let tables = raw::set_tables(loss.sets()).map_err(python_error)?;
        Ok(tables.map(|(offsets, tokens)| {
            let tables = [offsets, tokens].concat();
            PyBytes::new(py, bytemuck::cast_slice(&tables))
        }))
    }

    /// Takes a step with the statistics of the rows of all processes, and returns τ.
    fn step(&self, statistics: Fields) -> PyResult<f64> {
        self.locked(|loss| {
            let temperature = loss.temperature_mut()?;
            let step = temperature.state().step;
            temperature.step(&bytemuck::cast(statistics), step)
        })
    }

    /// Computes the loss of logits. Without a temperature, an adaptive one takes a step first.
    fn dense(
        &self,
        py: Python,
        dtype: Dtype,
        logits: RawMatrix,
        rows: &Rows,
        temperature: Option<f64>,
    ) -> PyResult<DenseForward> {
        with_element!(dtype, T => {
            // SAFETY: the package keeps the tensor of logits alive, and does not write it.
            let logits = unsafe { logits.view::<T>() }?;
            let pass = locked_on_threads(py, &self.0, |loss| match temperature {
                None => host::DenseForward::new(loss, logits, &rows.0),
                Some(temperature) => host::DenseForward::at(loss, logits, &rows.0, temperature),
            });
            pass.map(DenseForward).map_err(python_error)
        })
    }

    /// Computes the loss of hidden states and a head, and prepares the gradients that are wanted.
    #[allow(clippy::too_many_arguments)]
    fn linear(
        &self,
        py: Python,
        dtype: Dtype,
        input: RawInput,
        rows: &Rows,
        frozen: Option<Py<FrozenRows>>,
        temperature: Option<f64>,
        wanted: [bool; 2],
    ) -> PyResult<LinearForward> {
        macro_rules! run {
            ($T:ty, $variant:ident) => {{
                // SAFETY: the package keeps the tensors alive, and does not write them.
                let input = unsafe { input.view::<$T>(frozen.as_ref()) }?;
                let pass = locked_on_threads(py, &self.0, |loss| match temperature {
                    None => host::LinearForward::new(loss, input, &rows.0, wanted),
                    Some(temperature) => {
                        host::LinearForward::at(loss, input, &rows.0, temperature, wanted)
                    }
                });
                let pass = pass.map_err(python_error)?;
                let pass = Linear::$variant(pass);
                Ok(LinearForward { pass, frozen })
            }};
        }
        match dtype {
            Dtype::F32 => run!(f32, F32),
            Dtype::F64 => run!(f64, F64),
            Dtype::F16 => run!(f16, F16),
            Dtype::Bf16 => run!(bf16, Bf16),
        }
    }
}

impl Loss {
    /// Returns the loss as it stands, to be used without holding the lock.
    pub fn snapshot(&self) -> MaskedSoftmaxLoss {
        let loss = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loss.clone()
    }

    pub fn locked<R>(
        &self,
        body: impl FnOnce(&mut MaskedSoftmaxLoss) -> candle_trie::Result<R>,
    ) -> PyResult<R> {
        let mut loss = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body(&mut loss).map_err(python_error)
    }
}

/// Hidden states, head, and the address and the length of the bias, if there is one.
#[derive(Clone, Copy, FromPyObject)]
pub struct RawInput(pub RawMatrix, pub RawMatrix, pub Option<(usize, usize)>);

impl RawInput {
    /// # Safety
    /// That of [`RawMatrix::view`], for each of the tensors.
    unsafe fn view<T>(self, frozen: Option<&Py<FrozenRows>>) -> PyResult<LinearInput<'_, T>> {
        let Self(hidden, head, bias) = self;
        // SAFETY: the caller's promise.
        unsafe {
            Ok(LinearInput {
                hidden: hidden.view()?,
                head: head.view()?,
                bias: bias.map_or(Ok(&[][..]), |(address, length)| slice(address, length))?,
                frozen: frozen.map(|frozen| &frozen.get().0),
            })
        }
    }
}

/// A forward pass over logits.
#[pyclass(frozen)]
pub struct DenseForward(host::DenseForward);

#[pymethods]
impl DenseForward {
    /// Writes the loss, float64, to an address.
    fn write_loss(&self, address: usize, length: usize) -> PyResult<()> {
        // SAFETY: the package passes a new tensor of this length.
        write(&self.0.loss(), unsafe { slice_mut(address, length) }?)
    }

    #[getter]
    fn temperature(&self) -> f64 {
        self.0.temperature()
    }

    #[getter]
    fn statistics(&self) -> Fields {
        bytemuck::cast(*self.0.statistics())
    }

    /// Writes the gradient of the logits, contiguous and of their dtype. `upstream` is float64.
    fn backward(
        &self,
        py: Python,
        dtype: Dtype,
        logits: RawMatrix,
        upstream: (usize, usize),
        gradient: (usize, usize),
    ) -> PyResult<()> {
        with_element!(dtype, T => {
            // SAFETY: the package keeps the tensors alive. The gradient is a new one.
            let (logits, upstream, gradient) = unsafe {
                (logits.view::<T>()?, slice(upstream.0, upstream.1)?, slice_mut(gradient.0, gradient.1)?)
            };
            on_threads(py, || self.0.backward(logits, upstream, gradient))
        })
        .map_err(python_error)
    }
}

/// A forward pass over hidden states and a head.
#[pyclass(frozen)]
pub struct LinearForward {
    pass: Linear,
    /// The gathered rows of the head, which the backward pass uses again.
    frozen: Option<Py<FrozenRows>>,
}

enum Linear {
    F32(host::LinearForward<f32>),
    F64(host::LinearForward<f64>),
    F16(host::LinearForward<f16>),
    Bf16(host::LinearForward<bf16>),
}

/// Runs `$body` with `$pass` bound to the pass, whatever its type.
macro_rules! with_pass {
    ($linear:expr, $pass:ident => $body:expr) => {
        match &$linear {
            Linear::F32($pass) => $body,
            Linear::F64($pass) => $body,
            Linear::F16($pass) => $body,
            Linear::Bf16($pass) => $body,
        }
    };
}

#[pymethods]
impl LinearForward {
    /// Writes the loss, float64, to an address.
    fn write_loss(&self, address: usize, length: usize) -> PyResult<()> {
        let loss = with_pass!(self.pass, pass => pass.loss());
        // SAFETY: the package passes a new tensor of this length.
        write(&loss, unsafe { slice_mut(address, length) }?)
    }

    #[getter]
    fn temperature(&self) -> f64 {
        with_pass!(self.pass, pass => pass.temperature())
    }

    #[getter]
    fn statistics(&self) -> Fields {
        bytemuck::cast(with_pass!(self.pass, pass => *pass.statistics()))
    }

    /// Writes the gradients, contiguous and of the dtype of the inputs, each given as address and length; None for those that
    /// are not wanted. `upstream` is float64.
    fn backward(
        &self,
        py: Python,
        dtype: Dtype,
        input: RawInput,
        upstream: (usize, usize),
        gradients: [Option<(usize, usize)>; 3],
    ) -> PyResult<()> {
        dtype.check(match &self.pass {
            Linear::F32(_) => Dtype::F32,
            Linear::F64(_) => Dtype::F64,
            Linear::F16(_) => Dtype::F16,
            Linear::Bf16(_) => Dtype::Bf16,
        })?;
        with_pass!(self.pass, pass => {
            // SAFETY: the package keeps the tensors alive. The gradients are new ones.
            let (input, upstream) = unsafe {
                (input.view(self.frozen.as_ref())?, slice(upstream.0, upstream.1)?)
            };
            let [hidden, head, bias] = gradients
                // SAFETY: as above.
                .map(|to| to.map(|(address, length)| unsafe { slice_mut(address, length) }).transpose());
            let (hidden, head, bias) = (hidden?, head?, bias?);
            on_threads(py, || pass.backward(input, upstream, LinearGradients { hidden, head, bias }))
        })
        .map_err(python_error)
    }
}

/// Merges the statistics of the rows of two processes or micro-batches.
#[pyfunction]
pub fn merge_statistics(one: Fields, other: Fields) -> Fields {
    let [one, other]: [Statistics; 2] = [one, other].map(bytemuck::cast);
    bytemuck::cast(one.merge(&other))
}

fn write(values: &[f64], to: &mut [f64]) -> PyResult<()> {
    if values.len() != to.len() {
        let (values, to) = (values.len(), to.len());
        return Err(PyValueError::new_err(format!(
            "the loss has {values} values, and there is memory for {to}"
        )));
    }
    to.copy_from_slice(values);
    Ok(())
}

fn strategy(settings: Adaptive) -> PyResult<AdaptiveStrategy> {
    let (scope, eta, alpha, initial, minimum, maximum, warm_up, allow_degenerate) = settings;
    let scope = match scope.as_str() {
        "root" => Scope::Root,
        "branching" => Scope::Branching,
        _ => {
            return Err(PyValueError::new_err(format!(
                "expected the scope \"root\" or \"branching\", found {scope:?}"
            )));
        }
    };
    Ok(AdaptiveStrategy {
        scope,
        eta,
        alpha,
        initial,
        minimum,
        maximum,
        warm_up,
        allow_degenerate,
    })
}

fn named_reduction(name: &str, denominator: f64) -> PyResult<Reduction> {
    match name {
        "mean" => Ok(Reduction::MeanOverLabelled),
        "mean_branching" => Ok(Reduction::MeanOverBranching),
        "mean_over" => Ok(Reduction::MeanOver(denominator)),
        "sum" => Ok(Reduction::Sum),
        "none" => Ok(Reduction::None),
        _ => Err(PyValueError::new_err(format!(
            "expected the reduction \"mean\", \"mean_branching\", \"sum\", \"none\" or a number, found {name:?}"
        ))),
    }
}
