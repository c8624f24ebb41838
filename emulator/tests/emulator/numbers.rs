//! The shims' conversions against the crate `half`, for every half and for floats on and beside
//! every border.

use bytemuck::{Pod, Zeroable};
use candle_trie_emulator::{Emulator, Launch, Memory};
use half::{bf16, f16};

/// Mirrors `NumbersParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    wide: u64,
    narrow: u64,
    to_half: u64,
    to_bfloat16: u64,
    from_half: u64,
    from_bfloat16: u64,
    count: u64,
}

/// Each half, each number half-way between two, and their neighbours.
fn floats() -> Vec<f32> {
    let borders = (0..=u16::MAX).flat_map(|bits| {
        let (half, brain) = (
            f16::from_bits(bits).to_f32(),
            f32::from_bits(u32::from(bits) << 16),
        );
        let half_way = f32::from_bits(u32::from(bits) << 16 | 0x8000);
        let between = if half.is_finite() {
            half + half.abs().max(f32::MIN_POSITIVE) * f32::EPSILON * 4096.0
        } else {
            half
        };
        [half, brain, half_way, between]
    });
    borders
        .flat_map(|float| {
            [-1i32, 0, 1].map(|step| f32::from_bits(float.to_bits().wrapping_add_signed(step)))
        })
        .collect()
}

fn conversions_are_those_of_half() {
    let wide = floats();
    let narrow: Vec<u16> = (0..wide.len()).map(|index| index as u16).collect();
    let mut memory = Memory::new();
    let to_half = memory.allocate::<u16>("to_half", wide.len());
    let to_bfloat16 = memory.allocate::<u16>("to_bfloat16", wide.len());
    let from_half = memory.allocate::<f32>("from_half", wide.len());
    let from_bfloat16 = memory.allocate::<f32>("from_bfloat16", wide.len());
    let params = Params {
        wide: memory.upload("wide", &wide).address(),
        narrow: memory.upload("narrow", &narrow).address(),
        to_half: to_half.address(),
        to_bfloat16: to_bfloat16.address(),
        from_half: from_half.address(),
        from_bfloat16: from_bfloat16.address(),
        count: wide.len() as u64,
    };
    let (grid, block, params) = ([16, 1, 1], [256, 1, 1], bytemuck::bytes_of(&params));
    let launch = Launch {
        kernel: "numbers",
        grid,
        block,
        shared_bytes: 0,
        cooperative: false,
        params,
    };
    Emulator::default().run(&launch, &mut memory).unwrap();

    let same = |ours: f32, theirs: f32| {
        ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan()
    };
    for ((&float, ours), brain) in wide
        .iter()
        .zip(memory.download(to_half).unwrap())
        .zip(memory.download(to_bfloat16).unwrap())
    {
        let (ours, brain) = (f16::from_bits(ours), bf16::from_bits(brain));
        assert!(
            same(ours.to_f32(), f16::from_f32(float).to_f32()),
            "{float:e} as half: {ours:?}"
        );
        assert!(
            same(brain.to_f32(), bf16::from_f32(float).to_f32()),
            "{float:e} as bfloat16: {brain:?}"
        );
    }
    for ((&bits, half), brain) in narrow
        .iter()
        .zip(memory.download(from_half).unwrap())
        .zip(memory.download(from_bfloat16).unwrap())
    {
        assert!(
            same(half, f16::from_bits(bits).to_f32()),
            "half {bits:#06x}: {half:e}"
        );
        assert!(
            same(brain, bf16::from_bits(bits).to_f32()),
            "bfloat16 {bits:#06x}: {brain:e}"
        );
    }
}

candle_trie_emulator::emulated_tests! {
    conversions_are_those_of_half,
}
