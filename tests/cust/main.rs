//! The losses over cust's buffers. Those tests that need a GPU are ignored unless asked for:
//! `scripts/gpu-check`.
#![cfg(feature = "cust")]

#[path = "../linear/batch.rs"]
#[allow(dead_code)]
mod batch;
#[path = "../dense/batch.rs"]
#[allow(dead_code)]
mod dense_batch;

mod dense;
mod linear;
mod number;

use candle_trie::cust::{Executor, LossOutput};
use cust::context::Context;
use cust::stream::{Stream, StreamFlags};

#[test]
fn without_a_context_the_kernels_are_not_loaded_but_an_error_is_a_value() {
    let error = Executor::new().unwrap_err().to_string();
    let words = ["NoDevice", "NotInitialized", "InvalidContext"];
    assert!(words.iter().any(|word| error.contains(word)), "{error}");
}

fn device() -> (Context, Stream) {
    let context = cust::quick_init().expect("these tests need a GPU");
    (context, Stream::new(StreamFlags::DEFAULT, None).unwrap())
}

fn total(output: &LossOutput) -> f64 {
    losses(output).into_iter().sum()
}

fn losses(output: &LossOutput) -> Vec<f64> {
    let losses = output.read_loss().unwrap();
    losses.into_iter().map(f64::from).collect()
}
