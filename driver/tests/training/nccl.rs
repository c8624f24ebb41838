//! Two ranks whose gradients NCCL sums on their GPUs come to what one process comes to. `scripts/gpu-check` starts them:
//!
//! ```sh
//! mpirun -n 2 TEST_BINARY nccl::
//! ```

use candle_core::{DType, Device, Tensor};
use msl::{
    exchange::{self, Alone, Exchange},
    model::Llama,
    train::loss_settings::{LossKind, StatisticsScope},
};

use super::{LOSSES, loss, train_as, training};

/// The GPU of this rank, or why there is nothing to test here. All ranks come to the same.
fn gpu(exchange: &dyn Exchange) -> Result<Device, String> {
    let ranks = exchange.size();
    if ranks < 2 {
        return Err(format!(
            "started as {ranks} rank, where mpirun -n 2 is needed"
        ));
    }
    let gpu = Device::new_cuda(exchange.rank());
    let found = exchange::gather(exchange, &u8::from(gpu.is_ok())).unwrap();
    let count = found.iter().filter(|&&found| found == 1).count();
    match gpu {
        Ok(gpu) if count == ranks => Ok(gpu),
        _ => Err(format!(
            "{ranks} ranks need a GPU each, and there are {count} here"
        )),
    }
}

/// One test, because MPI is initialised once in a process.
#[test]
fn two_gpus_sum_exactly_and_train_as_one_does() {
    let exchange = exchange::open().unwrap();
    let exchange = &*exchange;
    match gpu(exchange) {
        Ok(gpu) => {
            sums_are_exact_and_of_views_too(exchange, &gpu);
            every_loss_trains_as_on_one_gpu(exchange, &gpu);
        }
        Err(why) => eprintln!("skipped: {why}"),
    }
}

fn sums_are_exact_and_of_views_too(exchange: &dyn Exchange, gpu: &Device) {
    // f32 holds whole numbers below 2^24, whatever the order of the terms.
    let (first, count) = (3, (1 << 20) + 5);
    let values = (0..first + count).map(|place| (place * (exchange.rank() + 1)) as f32);
    let values = Tensor::from_iter(values, gpu).unwrap();
    let sums = exchange.sum(&values.narrow(0, first, count).unwrap());
    let sums: Vec<f32> = sums.unwrap().to_vec1().unwrap();
    let ranks = exchange.size();
    let times = ranks * (ranks + 1) / 2;
    for (place, sum) in (first..).zip(sums) {
        assert_eq!(sum, (place * times) as f32, "value {place}");
    }
}

fn every_loss_trains_as_on_one_gpu(exchange: &dyn Exchange, gpu: &Device) {
    let model = |config| Llama::random(config, 7, DType::F32, gpu).unwrap();
    for kind in LOSSES {
        for scope in [StatisticsScope::Root, StatisticsScope::Branching] {
            assert_same_as_on_one_gpu(exchange, &model, kind, scope);
        }
    }
}

fn assert_same_as_on_one_gpu(
    exchange: &dyn Exchange,
    model: &impl Fn(msl::model::LlamaConfig) -> Llama,
    kind: LossKind,
    scope: StatisticsScope,
) {
    let loss = loss(kind, scope);
    let what = format!("{kind:?}, {scope:?}");
    let (expected, ..) = train_as(&Alone, &loss, &training(), model);
    let (found, _, weights) = train_as(exchange, &loss, &training(), model);
    for other in exchange.gather(bytemuck::cast_slice(&weights)).unwrap() {
        assert!(
            other == bytemuck::cast_slice::<_, u8>(&weights),
            "{what}: ranks have other weights"
        );
    }
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        // Products of other sizes are rounded otherwise, and Adam carries that on.
        let largest = if found.step == 1 { 1e-5 } else { 2e-4 };
        assert_eq!(found.rows, expected.rows);
        for (found, expected, name) in [
            (found.loss, expected.loss, "loss"),
            (found.temperature, expected.temperature, "temperature"),
            (found.gradient_norm, expected.gradient_norm, "gradient norm"),
        ] {
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(
                error < largest,
                "{what}: {name} {found}, expected {expected}"
            );
        }
    }
}
