//! The dense loss on a GPU gives what it gives on the CPU.

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::{GradientTarget, MaskedSoftmaxLoss, Rows, Temperature, TokenSets};

use crate::batch::{
    SHAPE, VOCABULARY, assert_close, conventions, f64s, loss, noise, rows, rows_of, sets,
    temperatures, weighted_rows,
};
use crate::cuda;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 8e-3,
        DType::F16 => 1e-3,
        _ => 1e-5,
    }
}

/// Everything that one batch gives, whichever way it is asked for, as f64 on the host.
fn everything(loss: &MaskedSoftmaxLoss, logits: &Tensor, rows: &Rows) -> Vec<Vec<f64>> {
    let mut stepped = loss.clone();
    let variable = Var::from_tensor(logits).unwrap();
    let autograd = stepped.forward(&variable, rows).unwrap();
    // The second step goes on from a temperature that may be on the device.
    let (fused, gradient) = stepped
        .value_and_gradient(logits, rows, GradientTarget::New)
        .unwrap();
    let kept = (logits.ones_like().unwrap() * f64::NAN).unwrap();
    let (into, _) = stepped
        .value_and_gradient(logits, rows, GradientTarget::Into(&kept))
        .unwrap();
    let gradients = autograd.loss.sum_all().unwrap().backward().unwrap();
    let again = autograd.loss.sum_all().unwrap().backward().unwrap();
    let over = logits.copy().unwrap();
    stepped
        .value_and_gradient(&over, rows, GradientTarget::InPlace)
        .unwrap();
    let statistics = loss.statistics(logits, rows).unwrap();
    let mut all = vec![
        f64s(gradients.get(&variable).unwrap()),
        f64s(again.get(&variable).unwrap()),
        f64s(&gradient),
        f64s(&kept),
        f64s(&over),
        bytemuck::cast_slice(&[statistics]).to_vec(),
        vec![
            stepped.temperature().unwrap().value(),
            stepped.temperature().unwrap().state().step as f64,
        ],
        f64s(&loss.evaluate(logits, rows).unwrap().loss),
        f64s(&loss.forward_at(logits, rows, 1.7).unwrap().loss),
    ];
    for output in [autograd, fused, into] {
        all.extend([&output.loss, &output.temperature, &output.statistics].map(f64s));
    }
    all
}

fn assert_same(
    loss: &MaskedSoftmaxLoss,
    logits: &Tensor,
    rows: &Rows,
    device: &Device,
    what: &str,
) {
    let on_cpu = everything(loss, logits, rows);
    let on_gpu = everything(loss, &logits.to_device(device).unwrap(), rows);
    for (part, (found, expected)) in on_gpu.iter().zip(&on_cpu).enumerate() {
        let what = format!("{what}, {:?}, part {part}", logits.dtype());
        assert_close(found, expected, tolerance(logits.dtype()), &what);
    }
}

fn logits(seed: u64, positions: usize, width: usize, dtype: DType) -> Tensor {
    let values = noise(seed, positions * width, 5.0);
    let logits = Tensor::from_vec(values, (positions, width), &Device::Cpu).unwrap();
    logits.to_dtype(dtype).unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn every_option_gives_what_it_gives_on_the_cpu() {
    let device = cuda();
    for dtype in DTYPES {
        let logits = logits(1, 8, VOCABULARY, dtype).reshape(&SHAPE).unwrap();
        for temperature in temperatures() {
            for convention in conventions() {
                for rows in [rows(), weighted_rows()] {
                    let loss = loss(&sets(), &temperature, convention);
                    let what = format!("{convention:?} at {temperature:?}");
                    assert_same(&loss, &logits, &rows, &device, &what);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn every_size_gives_what_it_gives_on_the_cpu() {
    let device = cuda();
    for (positions, width) in [(1, 9), (3, 9), (64, 1003), (300, 4096), (40, 50_257)] {
        let tokens: Vec<u32> = (0..width as u32).step_by(3).collect();
        let listed = TokenSets::from_raw(vec![0, tokens.len() as u32], tokens).unwrap();
        let whole = TokenSets::whole_vocabulary(width).unwrap();
        let every_other: Vec<_> = (0..positions as u32)
            .step_by(2)
            .map(|p| (p, 0, 6))
            .collect();
        let rows = rows_of(positions, &every_other);
        let rows = rows.with_marks(vec![true; every_other.len()]).unwrap();
        for dtype in DTYPES {
            let logits = logits(2, positions, width, dtype);
            for sets in [&listed, &whole] {
                for temperature in temperatures() {
                    let loss = loss(sets, &temperature, conventions()[0]);
                    let what = format!("{positions} × {width} at {temperature:?}");
                    assert_same(&loss, &logits, &rows, &device, &what);
                }
            }
        }
    }
}

/// In each thread candle's stream is another: the sets that one has uploaded, and the temperature that one has
/// stepped, are the others' too.
#[test]
#[ignore = "needs a GPU"]
fn threads_may_use_clones_of_one_loss() {
    let width = 200_000;
    let tokens: Vec<u32> = (0..width as u32).collect();
    let listed = TokenSets::from_raw(vec![0, tokens.len() as u32], tokens).unwrap();
    let rows = rows_of(2, &[(0, 0, 6), (1, 0, 199_999)]);
    let rows = rows.with_marks(vec![true; 2]).unwrap();
    let logits = logits(5, 2, width, DType::F32);
    for temperature in temperatures() {
        for _ in 0..10 {
            let device = cuda();
            let mut first = loss(&listed, &temperature, conventions()[0]);
            let on_cpu = first.clone();
            let stepped = |mut loss: MaskedSoftmaxLoss, device: &Device| {
                let logits = logits.to_device(device).unwrap();
                let output = loss.forward(&logits, &rows).unwrap();
                (f64s(&output.loss), loss)
            };
            let (expected, on_cpu) = stepped(on_cpu, &Device::Cpu);
            let (again, _) = stepped(on_cpu, &Device::Cpu);
            let uploads = std::sync::Barrier::new(8);
            std::thread::scope(|threads| {
                for _ in 0..8 {
                    threads.spawn(|| {
                        uploads.wait();
                        let (found, loss) = stepped(first.clone(), &device);
                        assert_close(&found, &expected, 1e-5, "first step");
                        let (found, _) = stepped(loss, &device);
                        assert_close(&found, &again, 1e-5, "second step");
                    });
                }
            });
            let output = first.forward(&logits.to_device(&device).unwrap(), &rows);
            output.unwrap();
            let second = std::thread::scope(|threads| {
                threads.spawn(|| stepped(first, &device).0).join().unwrap()
            });
            assert_close(&second, &again, 1e-5, "second step, in another thread");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn rows_may_lie_apart() {
    let device = cuda();
    for dtype in DTYPES {
        let wide = logits(3, 11, 12, dtype).to_device(&device).unwrap();
        let view = wide
            .narrow(0, 2, 8)
            .unwrap()
            .narrow(1, 3, VOCABULARY)
            .unwrap();
        let copy = view.contiguous().unwrap();
        for temperature in temperatures() {
            let loss = loss(&sets(), &temperature, conventions()[0]);
            let [apart, together] = [view.clone(), copy.clone()].map(|logits| {
                loss.clone()
                    .value_and_gradient(&logits, &rows(), GradientTarget::New)
                    .unwrap()
            });
            assert_eq!(f64s(&apart.0.loss), f64s(&together.0.loss));
            assert_eq!(f64s(&apart.1), f64s(&together.1));
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_has_no_kernel_is_refused() {
    let logits = logits(4, 8, VOCABULARY, DType::F64)
        .to_device(&cuda())
        .unwrap();
    let loss = loss(&sets(), &Temperature::fixed(1.0), conventions()[0]);
    let error = loss.evaluate(&logits, &rows()).unwrap_err().to_string();
    assert!(error.contains("f32, f16 or bf16"), "{error}");
}
