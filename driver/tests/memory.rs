//! What a step of adapter training holds in memory at its highest.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::{DType, Device, Tensor};
use msl::model::{Llama, LlamaConfig, LoraSettings};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        HIGHEST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// SmolLM2-135M's widths, with fewer layers and a small vocabulary: memory grows with the layers evenly.
fn model(layers: usize) -> Llama {
    let config = LlamaConfig {
        vocab_size: 64,
        hidden_size: 576,
        intermediate_size: 1_536,
        num_hidden_layers: layers,
        num_attention_heads: 9,
        num_key_value_heads: Some(3),
        ..LlamaConfig::default()
    };
    let mut model = Llama::random(config, 1, DType::F32, &Device::Cpu).unwrap();
    model.adapt(&LoraSettings::default(), 1).unwrap();
    model
}

/// The highest that forward and backward add to what was there.
fn peak(layers: usize, tokens: usize) -> usize {
    let model = model(layers);
    let tokens = Tensor::zeros((1, tokens), DType::U32, &Device::Cpu).unwrap();
    let before = NOW.load(Ordering::Relaxed);
    HIGHEST.store(before, Ordering::Relaxed);
    let hidden = model.hidden_in_training(&tokens, &[1]).unwrap();
    let gradients = hidden.sum_all().unwrap().backward().unwrap();
    assert_eq!(gradients.get_ids().count(), model.parameters().len());
    HIGHEST.load(Ordering::Relaxed) - before
}

/// The highest that an evaluation adds to what was there.
fn peak_without_gradient(layers: usize, tokens: usize) -> usize {
    let model = model(layers);
    let tokens = Tensor::zeros((1, tokens), DType::U32, &Device::Cpu).unwrap();
    let before = NOW.load(Ordering::Relaxed);
    HIGHEST.store(before, Ordering::Relaxed);
    model.hidden(&tokens).unwrap();
    HIGHEST.load(Ordering::Relaxed) - before
}

#[test]
fn a_step_of_smollm2_keeps_few_activations_no_gradient_of_what_is_frozen_and_evaluation_keeps_none()
{
    const TOKENS: usize = 256;
    let (two, four) = (peak(2, TOKENS), peak(4, TOKENS));
    let per_token_and_layer = (four - two) / 2 / TOKENS;
    println!(
        "{per_token_and_layer} bytes a token and layer: {} MiB for 30 layers and 820 tokens",
        (per_token_and_layer * 30 * 820) >> 20
    );
    // Eight rows of the residual stream's width, queries, keys and values twice, and the two inner rows of the
    // feed-forward block; attention weights and gradients of the 3.5 million frozen weights of a layer are not among it.
    assert!(per_token_and_layer < 4 * (8 * 576 + 2 * 960 + 2 * 1_536));

    let [two, four] = [2, 4].map(|layers| peak_without_gradient(layers, TOKENS));
    // Test threads allocate a little meanwhile.
    let kept = four.abs_diff(two) / 2 / TOKENS;
    assert!(kept < 64, "evaluation keeps {kept} bytes a token and layer");
}
