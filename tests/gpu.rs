//! Plans on a GPU. Run with `cargo test --features cuda --test gpu -- --ignored` where there is
//! one.
#![cfg(feature = "cuda")]

mod emulated;

use candle_core::{CudaDevice, Device};
use candle_trie::Row;
use candle_trie::cuda::{Buffers, Executor};
use candle_trie::launch::{Element, RowLogSumExp, Sum, TokenSetsView};
use emulated::noise;

fn device() -> CudaDevice {
    let device = Device::new_cuda(0).expect("these tests need a GPU");
    device.as_cuda_device().expect("a CUDA device").clone()
}

#[test]
#[ignore = "needs a GPU"]
fn the_total_of_a_grid_is_the_sum() {
    let device = device();
    let executor = Executor::new(&device).unwrap();
    for count in [0, 1, 1025, 100_003, 30_000_000] {
        let numbers = noise(count);
        let plan = Sum::new(count as u64, executor.limits());
        // A device has no buffer without elements.
        let values = device.clone_htod(&[&numbers[..], &[0.0]].concat()).unwrap();
        let mut partials = device.alloc_zeros::<f32>(plan.partials()).unwrap();
        let mut total = device.alloc_zeros::<f32>(1).unwrap();
        let mut buffers = Buffers::new();
        let launch = plan.total(
            buffers.read(&executor, &values),
            buffers.write(&executor, &mut partials),
            buffers.write(&executor, &mut total),
        );
        // SAFETY: the parameters are the plan's, and the buffers have the sizes that it asks for.
        unsafe { executor.launch(&launch, buffers) }.unwrap();

        let ours = f64::from(device.clone_dtoh(&total).unwrap()[0]);
        let expected: f64 = numbers.iter().copied().map(f64::from).sum();
        let tolerance = 1e-4 * (count as f64).max(1.0).sqrt();
        assert!(
            (ours - expected).abs() < tolerance,
            "{count}: {ours}, not {expected}"
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn rows_over_token_sets_are_those_of_f64() {
    let device = device();
    let executor = Executor::new(&device).unwrap();
    let (vocabulary, positions) = (1003_usize, 7_u32);
    let logits = noise(positions as usize * vocabulary);
    let (offsets, tokens) = (
        [0_u32, 1, 4, 904],
        (0..904).map(|index| index % 1003).collect::<Vec<u32>>(),
    );
    let rows: Vec<Row> = (0..23)
        .map(|row| Row {
            position: row % positions,
            set: row % 3,
            target: 0,
        })
        .collect();
    let words: Vec<u32> = bytemuck::cast_slice(&rows).to_vec();

    let on_device = [&offsets[..], &tokens, &words].map(|words| device.clone_htod(words).unwrap());
    let logits_on_device = device.clone_htod(&logits).unwrap();
    let mut out = device.alloc_zeros::<f32>(rows.len()).unwrap();
    let mut buffers = Buffers::new();
    let plan = RowLogSumExp {
        element: Element::F32,
        logits: buffers.read(&executor, &logits_on_device),
        row_stride: vocabulary as u64,
        rows: buffers.read(&executor, &on_device[2]),
        row_count: rows.len() as u32,
        sets: TokenSetsView {
            offsets: buffers.read(&executor, &on_device[0]),
            tokens: buffers.read(&executor, &on_device[1]),
            vocabulary: vocabulary as u64,
        },
        temperature: 1.5,
        out: buffers.write(&executor, &mut out),
    };
    let launch = plan.launch(executor.limits()).expect("there are rows");
    // SAFETY: the parameters are the plan's, and the buffers have the sizes that it asks for.
    unsafe { executor.launch(&launch, buffers) }.unwrap();

    for (row, ours) in rows.iter().zip(device.clone_dtoh(&out).unwrap()) {
        let set =
            &tokens[offsets[row.set as usize] as usize..offsets[row.set as usize + 1] as usize];
        let start = row.position as usize * vocabulary;
        let sum: f64 = set
            .iter()
            .map(|&token| (f64::from(logits[start + token as usize]) / 1.5).exp())
            .sum();
        assert!(
            (f64::from(ours) - sum.ln()).abs() < 1e-5,
            "{row:?}: {ours}, not {}",
            sum.ln()
        );
    }
}
