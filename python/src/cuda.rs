//! Forward and backward passes over CUDA tensors, on a stream of PyTorch and in memory that PyTorch allocates.

use candle_trie::raw::{
    DenseForward, DenseTensors, DeviceMatrix, DevicePtr, Element, ForwardResults, Launcher,
    Lifetime, LinearForward, LinearGradients, LinearTensors, Pass, RawStream, Upstream, count_step,
    sets_at,
};
use candle_trie::{Error, MaskedSoftmaxLoss};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::loss::{Loss, RawInput};
use crate::memory::{Dtype, RawMatrix};
use crate::python_error;
use crate::rows::Rows;

/// A stream of PyTorch.
#[pyclass(frozen)]
pub struct CudaStream {
    launcher: Launcher,
    allocate: Py<PyAny>,
}

/// An error of the library, or an exception of the allocator.
struct Raised(PyErr);

impl From<Error> for Raised {
    fn from(error: Error) -> Self {
        Self(python_error(error))
    }
}

/// The allocator as the library calls it.
type Allocate<'a> = &'a mut dyn FnMut(Lifetime, usize) -> Result<Option<DevicePtr>, Raised>;

#[pymethods]
impl CudaStream {
    /// Takes the number of the device, the handle of a stream in its primary context, and `allocate(kept, bytes)`, which returns
    /// an address. Opens NVIDIA's driver.
    #[new]
    fn new(py: Python, device: usize, handle: usize, allocate: Py<PyAny>) -> PyResult<Self> {
        // SAFETY: the package passes PyTorch's current stream, and keeps this object for one call of it.
        let launcher = py.detach(|| unsafe { Launcher::on_stream(device, handle) });
        launcher
            .map(|launcher| Self { launcher, allocate })
            .map_err(python_error)
    }
}

impl CudaStream {
    /// Issues launches without holding the interpreter, which only the allocator takes.
    fn issue<R: Send>(
        &self,
        py: Python,
        issue: impl FnOnce(&mut RawStream<Allocate>) -> Result<R, Raised> + Send,
    ) -> PyResult<R> {
        let issued = py.detach(|| {
            let mut allocate = |lifetime, bytes| {
                Python::attach(|py| {
                    let kept = lifetime == Lifetime::Kept;
                    let address = self.allocate.call1(py, (kept, bytes));
                    address.and_then(|address| address.extract(py))
                })
                .map(DevicePtr::new)
                .map_err(Raised)
            };
            // SAFETY: the package keeps scratch until a call has returned, and kept memory as long as the pass. PyTorch allocates
            // in the order of the stream.
            issue(&mut unsafe { RawStream::new(&self.launcher, &mut allocate) })
        });
        issued.map_err(|Raised(error)| error)
    }
}

/// A pass: the temperature, or None for that of the loss; the addresses of the tables of the token sets and of the temperature
/// before the pass, which may be 0; those of the loss, and of the results: τ, the statistics, and the sum of BEAR's weights.
#[derive(Clone, Copy, FromPyObject)]
pub struct RawPass(Option<f64>, u64, u64, u64, u64);

impl RawPass {
    fn previous(self) -> Option<DevicePtr> {
        DevicePtr::new(self.2)
    }

    fn of<'a>(
        self,
        stream: &'a CudaStream,
        loss: &'a MaskedSoftmaxLoss,
        rows: &'a Rows,
        element: Element,
    ) -> PyResult<Pass<'a>> {
        let results = address(self.4)?;
        Ok(Pass {
            loss,
            rows: &rows.0,
            temperature: self.0,
            limits: stream.launcher.limits(),
            element,
            results: ForwardResults {
                loss: address(self.3)?,
                temperature: results,
                statistics: results.offset(size_of::<f64>() as u64),
            },
        })
    }
}

/// A forward pass over logits.
#[pyclass(frozen)]
pub struct CudaDense(DenseForward);

#[pymethods]
impl CudaDense {
    /// Issues the pass. With the temperature of the loss, an adaptive one takes a step on the device, which is counted.
    #[new]
    fn new(
        py: Python,
        stream: &CudaStream,
        loss: &Loss,
        rows: &Rows,
        dtype: Dtype,
        logits: RawMatrix,
        pass: RawPass,
    ) -> PyResult<Self> {
        let snapshot = loss.snapshot();
        let tensors = DenseTensors {
            logits: logits.on_device(),
            sets: sets_at(snapshot.sets(), DevicePtr::new(pass.1)),
            previous: pass.previous(),
        };
        let shape = [logits.rows(), logits.width()];
        let steps = pass.0.is_none();
        let pass = pass.of(stream, &snapshot, rows, element(dtype)?)?;
        // SAFETY: the package passes tensors of these shapes, and uses them in the order of the stream.
        let forward = stream.issue(py, |stream| unsafe {
            pass.dense(stream, &tensors, shape, None)
        })?;
        if steps {
            loss.locked(count_step)?;
        }
        Ok(Self(forward))
    }

    /// Writes the gradient of the logits, contiguous and of their dtype. `upstream` is float32, and `results` those of the pass.
    fn backward(
        &self,
        py: Python,
        stream: &CudaStream,
        logits: RawMatrix,
        upstream: u64,
        results: u64,
        gradient: u64,
    ) -> PyResult<()> {
        let upstream = upstream_of(upstream, results)?;
        let gradient = DeviceMatrix {
            address: DevicePtr::new(gradient),
            row_stride: logits.width() as u64,
        };
        // SAFETY: as in `new`.
        stream.issue(py, |stream| unsafe {
            (self.0).issue_backward(stream, logits.on_device(), &upstream, gradient)
        })
    }
}

/// A forward pass over hidden states and a head.
#[pyclass(frozen)]
pub struct CudaLinear(LinearForward);

#[pymethods]
impl CudaLinear {
    /// Issues the pass, as that over logits. `wanted` says whether there will be gradients of the hidden states, and of the head or
    /// its bias.
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python,
        stream: &CudaStream,
        loss: &Loss,
        rows: &Rows,
        dtype: Dtype,
        input: RawInput,
        wanted: [bool; 2],
        pass: RawPass,
    ) -> PyResult<Self> {
        let snapshot = loss.snapshot();
        input.check().map_err(python_error)?;
        let RawInput(hidden, head, ..) = input;
        let ([of_hidden, of_head], bias) = input.on_device();
        let tensors = LinearTensors {
            hidden: of_hidden,
            head: of_head,
            base: None,
            bias,
            sets: sets_at(snapshot.sets(), DevicePtr::new(pass.1)),
            previous: pass.previous(),
        };
        let shape = [hidden.rows(), head.rows(), hidden.width()];
        let steps = pass.0.is_none();
        let pass = pass.of(stream, &snapshot, rows, element(dtype)?)?;
        let gradients = match wanted {
            [_, true] => LinearGradients::All(snapshot.sets()),
            [true, false] => LinearGradients::Hidden,
            [false, false] => LinearGradients::None,
        };
        // SAFETY: as in `CudaDense::new`.
        let forward = stream.issue(py, |stream| unsafe {
            pass.linear(stream, &tensors, shape, gradients, None)
        })?;
        if steps {
            loss.locked(count_step)?;
        }
        Ok(Self(forward))
    }

    /// Writes the gradients, contiguous and of the dtype of the inputs, each given as its address; None for those that are not
    /// wanted. Those of head and bias must hold zeros.
    fn backward(
        &self,
        py: Python,
        stream: &CudaStream,
        input: RawInput,
        upstream: u64,
        results: u64,
        gradients: [Option<u64>; 3],
    ) -> PyResult<()> {
        let upstream = upstream_of(upstream, results)?;
        let (inputs, bias_values) = input.on_device();
        let [hidden, head, bias] = gradients.map(|gradient| gradient.and_then(DevicePtr::new));
        // SAFETY: as in `CudaDense::new`.
        stream.issue(py, |stream| unsafe {
            if let Some(hidden) = hidden {
                (self.0).issue_hidden_gradient(stream, &upstream, hidden)?;
            }
            if head.is_some() || bias.is_some() {
                let to = [head, bias];
                (self.0).issue_head_gradient(stream, inputs, bias_values, &upstream, to)?;
            }
            Ok(())
        })
    }
}

impl RawMatrix {
    fn on_device(self) -> DeviceMatrix {
        DeviceMatrix {
            address: DevicePtr::new(self.address() as u64),
            row_stride: self.stride() as u64,
        }
    }
}

impl RawInput {
    fn on_device(self) -> ([DeviceMatrix; 2], Option<DevicePtr>) {
        let Self(hidden, head, bias) = self;
        let bias = bias.and_then(|(address, _)| DevicePtr::new(address as u64));
        ([hidden.on_device(), head.on_device()], bias)
    }

    /// Refuses a head that does not fit the hidden states, and a bias that does not fit the head.
    fn check(self) -> Result<(), Error> {
        let Self(hidden, head, bias) = self;
        let mismatch = |what, expected, actual| Error::LengthMismatch {
            what,
            expected,
            actual,
        };
        if hidden.width() != head.width() {
            let what = "width H of the head [V, H], which is that of the hidden states [N, H]";
            return Err(mismatch(what, hidden.width(), head.width()));
        }
        match bias {
            Some((_, length)) if length != head.rows() => {
                Err(mismatch("head bias", head.rows(), length))
            }
            _ => Ok(()),
        }
    }
}

fn upstream_of(loss: u64, results: u64) -> PyResult<Upstream> {
    Ok(Upstream {
        loss: address(loss)?,
        temperature: address(results)?,
    })
}

fn address(address: u64) -> PyResult<DevicePtr> {
    DevicePtr::new(address)
        .ok_or_else(|| PyValueError::new_err("a tensor has no memory on the device"))
}

fn element(dtype: Dtype) -> PyResult<Element> {
    match dtype {
        Dtype::F32 => Ok(Element::F32),
        Dtype::F16 => Ok(Element::F16),
        Dtype::Bf16 => Ok(Element::Bf16),
        Dtype::F64 => Err(PyValueError::new_err(
            "expected a CUDA tensor of dtype float32, float16 or bfloat16, found float64",
        )),
    }
}
