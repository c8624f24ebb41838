//! A sum, through the executor itself.

use candle_trie::cuda::{Buffers, Executor};
use candle_trie::launch::Sum;

use crate::cuda;
use crate::emulated::noise;

#[test]
#[ignore = "needs a GPU"]
fn the_total_of_a_grid_is_the_sum() {
    let device = cuda();
    let device = device.as_cuda_device().unwrap();
    let executor = Executor::new(device).unwrap();
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
