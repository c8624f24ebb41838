//! Our side of scripts/compare-with-pytorch: the loss on given inputs, timed when it is asked for, so
//! that PyTorch and we can take turns on a machine whose speed changes. The arguments are a shape and a
//! safetensors file with `hidden` `[N, H]` and `head` `[V, H]`. Prints the loss, and then for every
//! line of standard input, which names a way to it, the median of its seconds.

mod support;

use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Result, Var};
use candle_trie::{FrozenHead, MaskedSoftmaxLoss, Temperature};
use support::{Shape, settle_allocator};

fn main() -> Result<()> {
    let arguments: Vec<String> = (std::env::args().skip(1))
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let [shape, inputs] = &arguments[..] else {
        eprintln!("this is one side of scripts/compare-with-pytorch");
        return Ok(());
    };
    let shape = Shape::read(Path::new(shape));
    let rows = &shape.rows;
    let inputs = candle_core::safetensors::load(inputs, &Device::Cpu)?;
    let (hidden, head) = (Var::from_tensor(&inputs["hidden"])?, &inputs["head"]);
    let mut loss = MaskedSoftmaxLoss::new(&shape.sets, Temperature::fixed(1.0))?;

    settle_allocator();
    let frozen = FrozenHead::new(head, &shape.sets)?;
    let value = loss.forward((&hidden, &frozen), rows)?.loss;
    println!("{}", value.to_scalar::<f32>()?);
    let logits = Var::from_tensor(&hidden.matmul(&head.t()?)?)?;
    for way in std::io::stdin().lines() {
        let seconds = match way?.as_str() {
            "linear" => median_seconds(50, || {
                loss.forward((&hidden, &frozen), rows)?.loss.backward()
            }),
            "dense" => median_seconds(1, || {
                let logits = hidden.matmul(&head.t()?)?;
                loss.forward(&logits, rows)?.loss.backward()
            }),
            "given_logits" => median_seconds(5, || loss.forward(&logits, rows)?.loss.backward()),
            other => candle_core::bail!("{other} is not a way to the loss"),
        };
        println!("{}", seconds?);
    }
    Ok(())
}

/// The median of so many runs after a first.
fn median_seconds<T>(runs: usize, mut run: impl FnMut() -> Result<T>) -> Result<f64> {
    run()?;
    let mut seconds = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[runs / 2])
}
