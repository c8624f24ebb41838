//! The loss over hidden states and a head on a GPU gives what it gives on the CPU.

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::{FrozenHead, Head, TokenSets};

use crate::cuda;
use crate::linear_batch::{Batch, Options, assert_close, every_option, f64s};

/// Loss, τ, statistics, evaluation and hidden gradient, the last twice.
fn everything(
    batch: &Batch,
    options: &Options,
    dtype: DType,
    device: &Device,
    frozen: bool,
) -> [Vec<f64>; 6] {
    let moved = |values: &Var| values.to_dtype(dtype).unwrap().to_device(device).unwrap();
    let [hidden, weight, bias] = batch.tensors(dtype).map(|tensor| moved(&tensor).detach());
    let hidden = Var::from_tensor(&hidden).unwrap();
    let bias = options.bias.then_some(&bias);
    let frozen_head = FrozenHead::within(&weight, bias, batch.sets(options), 1 << 20).unwrap();
    let head = match (frozen, bias) {
        (true, _) => Head::from(&frozen_head),
        (false, Some(bias)) => Head::with_bias(&weight, bias),
        (false, None) => Head::from(&weight),
    };
    let rows = batch.rows(options);
    let mut loss = batch.loss(options);
    let evaluated = f64s(&loss.evaluate_linear(&hidden, head, &rows).unwrap().loss);
    let statistics = loss.statistics_linear(&hidden, head, &rows).unwrap();
    // The second step goes on from a temperature that may be on the device.
    loss.forward_linear(&hidden, head, &rows).unwrap();
    let output = loss.forward_linear(&hidden, head, &rows).unwrap();
    let gradient = || {
        let gradients = output.loss.sum_all().unwrap().backward().unwrap();
        f64s(gradients.get(&hidden).unwrap())
    };
    [
        f64s(&output.loss),
        vec![
            loss.temperature().value(),
            output.read_temperature().unwrap(),
        ],
        bytemuck::cast_slice(&[statistics]).to_vec(),
        evaluated,
        gradient(),
        gradient(),
    ]
}

#[test]
#[ignore = "needs a GPU"]
fn every_option_gives_what_it_gives_on_the_cpu() {
    let device = cuda();
    let tolerances = [
        (DType::F32, 2e-5),
        (DType::F16, 2e-3),
        (DType::BF16, 1.6e-2),
    ];
    for width in [40, 33] {
        let batch = Batch::new(width, 7);
        for (dtype, tolerance) in tolerances {
            let listed = every_option()
                .into_iter()
                .filter(|options| !options.whole_vocabulary);
            for (index, options) in listed.enumerate() {
                for frozen in [false, true] {
                    let on_cpu = everything(&batch, &options, dtype, &Device::Cpu, frozen);
                    let on_gpu = everything(&batch, &options, dtype, &device, frozen);
                    for (part, (found, expected)) in on_gpu.iter().zip(&on_cpu).enumerate() {
                        let what = format!("{width}, {dtype:?}, option {index}, part {part}");
                        assert_close(found, expected, tolerance, &what);
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_has_no_kernel_is_refused() {
    let device = cuda();
    let batch = Batch::new(8, 1);
    let options = &every_option()[0];
    let [hidden, head, _] = batch
        .tensors(DType::F32)
        .map(|v| v.to_device(&device).unwrap());
    let (rows, mut loss) = (batch.rows(options), batch.loss(options));
    let words = |error: candle_trie::Error| error.to_string();

    let tracked = Var::from_tensor(&head).unwrap();
    let error = loss
        .forward_linear(&hidden, tracked.as_tensor(), &rows)
        .unwrap_err();
    assert!(words(error).contains("takes no gradient"));

    let whole = TokenSets::whole_vocabulary(batch.vocabulary).unwrap();
    let whole = candle_trie::MaskedSoftmaxLoss::new(whole, options.temperature.clone()).unwrap();
    let everywhere = Options {
        whole_vocabulary: true,
        ..options.clone()
    };
    let rows = batch.rows(&everywhere);
    let error = whole
        .evaluate_linear(&hidden, &head.detach(), &rows)
        .unwrap_err();
    assert!(words(error).contains("whole vocabulary"));

    let head: Tensor = head.to_device(&Device::Cpu).unwrap().detach();
    let error = loss.forward_linear(&hidden, &head, &rows).unwrap_err();
    assert!(words(error).contains("as the hidden states"));
}
