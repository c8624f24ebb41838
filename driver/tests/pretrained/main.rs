//! Pretrained models and adapters from files: what is read, and what is refused with its name.

mod adapters;
mod folders;
mod gguf;
#[path = "../models/mod.rs"]
mod models;

use std::path::Path;

use candle_core::{Device, Tensor};
use msl::model::{Llama, precision::Precision, pretrained::Pretrained};

fn read(path: &Path) -> Llama {
    Pretrained::open(path, None)
        .unwrap()
        .read(Precision::F32, &Device::Cpu)
        .unwrap()
        .0
}

fn hidden(model: &Llama) -> Vec<f32> {
    let tokens = Tensor::new(&[[1u32, 70, 200, 5]], &Device::Cpu).unwrap();
    let hidden = model.hidden(&tokens).unwrap();
    hidden.flatten_all().unwrap().to_vec1().unwrap()
}

/// What is said of a model that cannot be read.
fn refusal(path: &Path) -> String {
    let read =
        Pretrained::open(path, None).and_then(|opened| opened.read(Precision::F32, &Device::Cpu));
    format!("{:#}", read.err().expect("this is no model"))
}
