//! The loss over logits.

use super::*;
use candle_trie::host::{self, Matrix};
use candle_trie::raw::DenseTensors;
use half::{bf16, f16};

candle_trie_emulator::emulated_tests!(it_gives_what_the_host_gives_step_after_step_in_every_type);

fn it_gives_what_the_host_gives_step_after_step_in_every_type() {
    let batch = Batch::new(24, 7);
    for (index, options) in options().iter().enumerate() {
        assert_of::<f32>(&batch, options, &format!("{index}, f32"));
        assert_of::<f16>(&batch, options, &format!("{index}, f16"));
        assert_of::<bf16>(&batch, options, &format!("{index}, bf16"));
    }
}

fn assert_of<T: Number + host::Element>(batch: &Batch, options: &Options, what: &str) {
    let (rows, shape) = (batch.rows(options), [batch.positions, batch.vocabulary]);
    let width = batch.vocabulary;
    let logits: Vec<T> = rounded(&batch.logits(false));
    let (mut on_host, mut loss) = (batch.loss(options), batch.loss(options));
    let emulator = Emulator::with_seed(1);
    let mut stream = EmulatedStream::new(&emulator, Memory::new(), LIMITS, u32::MAX);
    let sets = upload_sets(&mut stream.memory, &loss);
    let mut previous: Option<DevicePtr> = None;
    for step in 0..2 {
        let what = format!("{what}, step {step}");
        let expected = host::DenseForward::new(
            &mut on_host,
            Matrix::new(&logits, shape[0], width).unwrap(),
            &rows,
        )
        .unwrap();

        let results = Results::allocate(&mut stream.memory, raw::losses(&loss, &rows));
        let pass = Pass {
            loss: &loss,
            rows: &rows,
            temperature: None,
            limits: &LIMITS,
            element: T::ELEMENT,
            results: results.addresses(),
        };
        let first = stream.memory.upload("logits", &logits);
        let tensors = DenseTensors {
            logits: matrix(first, width),
            sets,
            previous,
        };
        // SAFETY: the emulator looks at every address.
        let forward = unsafe { pass.dense(&mut stream, &tensors, shape, None) };
        let forward = forward.unwrap_or_else(|failure| panic!("{what}: {}", failure.0));
        if raw::count_step(&mut loss).unwrap() {
            previous = Some(pointer(results.temperature));
        }
        let losses = expected.loss();
        let with = (&*losses, expected.temperature(), expected.statistics());
        results.assert_close(&mut stream.memory, with, &what);

        // Autograd may have moved the logits to the host and back.
        stream.memory.free(first.address());
        stream.free_scratch();
        let moved = stream.memory.upload("moved logits", &logits);
        let gradient = stream.memory.allocate::<T>("gradient", logits.len());
        let upstream = upstream(losses.len());
        let by = results.upstream(&mut stream.memory, &upstream);
        // SAFETY: the emulator looks at every address.
        let issued = unsafe {
            let (from, to) = (matrix(moved, width), matrix(gradient, width));
            forward.issue_backward(&mut stream, from, &by, to)
        };
        issued.unwrap_or_else(|failure| panic!("{what}: {}", failure.0));
        let mut of_host = logits.clone();
        let from = Matrix::new(&logits, shape[0], width).unwrap();
        expected.backward(from, &upstream, &mut of_host).unwrap();
        let of_host: Vec<f64> = of_host.into_iter().map(Number::to_f64).collect();
        let found = f64s(&mut stream.memory, gradient);
        assert_close(&found, &of_host, 2.0 * T::STEP.max(1e-5), &what);
    }
}
