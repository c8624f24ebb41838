//! The loss over hidden states and a head.

use super::*;
use candle_trie::host::{self, LinearInput, Matrix};
use candle_trie::raw::{LinearGradients, LinearTensors};
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
    let rows = batch.rows(options);
    let shape @ [positions, vocabulary, width] = [batch.positions, batch.vocabulary, batch.width];
    let values = [&batch.hidden, &batch.head, &batch.bias].map(|values| rounded::<T>(values));
    let [hidden, head, bias] = &values;
    let input = LinearInput {
        hidden: Matrix::new(hidden, positions, width).unwrap(),
        head: Matrix::new(head, vocabulary, width).unwrap(),
        bias: if options.bias { bias } else { &[] },
        frozen: None,
    };
    let (mut on_host, mut loss) = (batch.loss(options), batch.loss(options));
    let emulator = Emulator::with_seed(1);
    let mut stream = EmulatedStream::new(&emulator, Memory::new(), LIMITS, u32::MAX);
    let sets = upload_sets(&mut stream.memory, &loss);
    let mut previous: Option<DevicePtr> = None;
    for step in 0..2 {
        let what = format!("{what}, step {step}");
        let expected = host::LinearForward::new(&mut on_host, input, &rows, [true; 2]).unwrap();

        let results = Results::allocate(&mut stream.memory, raw::losses(&loss, &rows));
        let pass = Pass {
            loss: &loss,
            rows: &rows,
            temperature: None,
            limits: &LIMITS,
            element: T::ELEMENT,
            results: results.addresses(),
        };
        let upload = |stream: &mut EmulatedStream| {
            let [hidden, head, bias] = values
                .each_ref()
                .map(|values| stream.memory.upload("input", values));
            let tensors = LinearTensors {
                hidden: matrix(hidden, width),
                head: matrix(head, width),
                base: None,
                bias: options.bias.then_some(pointer(bias)),
                sets,
                previous,
            };
            ([hidden, head, bias], tensors)
        };
        let (first, tensors) = upload(&mut stream);
        let gradients = LinearGradients::All(loss.sets());
        // SAFETY: the emulator looks at every address.
        let forward = unsafe { pass.linear(&mut stream, &tensors, shape, gradients, None) };
        let forward = forward.unwrap_or_else(|failure| panic!("{what}: {}", failure.0));
        let losses = expected.loss();
        let with = (&*losses, expected.temperature(), expected.statistics());
        results.assert_close(&mut stream.memory, with, &what);

        // Autograd may have moved the inputs to the host and back.
        first
            .iter()
            .for_each(|buffer| stream.memory.free(buffer.address()));
        stream.free_scratch();
        let (_, moved) = upload(&mut stream);
        let memory = &mut stream.memory;
        let to_hidden = memory.allocate::<T>("gradient", hidden.len());
        let [to_head, to_bias] =
            [head, bias].map(|like| memory.upload("gradient", &vec![T::zeroed(); like.len()]));
        let upstream = upstream(losses.len());
        let by = results.upstream(memory, &upstream);
        // SAFETY: the emulator looks at every address.
        let issued = unsafe {
            let of_head = [
                Some(pointer(to_head)),
                options.bias.then_some(pointer(to_bias)),
            ];
            (forward.issue_hidden_gradient(&mut stream, &by, pointer(to_hidden))).and_then(|()| {
                let inputs = [moved.hidden, moved.head];
                forward.issue_head_gradient(&mut stream, inputs, moved.bias, &by, of_head)
            })
        };
        issued.unwrap_or_else(|failure| panic!("{what}: {}", failure.0));

        let [mut of_hidden, mut of_head, mut of_bias] = values.clone();
        let to = host::LinearGradients {
            hidden: Some(&mut of_hidden),
            head: Some(&mut of_head),
            bias: options.bias.then_some(&mut of_bias),
        };
        expected.backward(input, &upstream, to).unwrap();
        let bias = options.bias.then_some((to_bias, of_bias, "bias"));
        let of = [
            (to_hidden, of_hidden, "hidden states"),
            (to_head, of_head, "head"),
        ];
        for (found, expected, of) in of.into_iter().chain(bias) {
            let expected: Vec<f64> = expected.into_iter().map(Number::to_f64).collect();
            let (found, what) = (f64s(&mut stream.memory, found), format!("{what}: {of}"));
            assert_close(&found, &expected, 2.0 * T::STEP.max(1e-5), &what);
        }
        if raw::count_step(&mut loss).unwrap() {
            previous = Some(pointer(results.temperature));
        }
    }
}
