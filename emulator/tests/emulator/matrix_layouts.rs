//! Which element of a matrix is in which register of which lane: the tables of the PTX ISA for
//! `ldmatrix` (.m8n8.b16) and `mma.m16n8k16` (.f16, .bf16), written down here once more.

use bytemuck::{Pod, Zeroable};
use candle_trie_emulator::{Emulator, Launch, Memory};
use half::{bf16, f16};

const LANES: usize = 32;

/// Mirrors `LayoutParams` of faulty_kernels/matrix_layouts.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LayoutParams {
    content: u64,
    rows: u64,
    a: u64,
    b: u64,
    c: u64,
    loaded: u64,
    sums: u64,
    content_bytes: u64,
}

fn run(kernel: &str, seed: u64, shared_bytes: u32, params: LayoutParams, memory: &mut Memory) {
    let launch = Launch {
        kernel,
        grid: [1, 1, 1],
        block: [LANES as u32, 1, 1],
        shared_bytes,
        cooperative: false,
        params: bytemuck::bytes_of(&params),
    };
    Emulator::with_seed(seed).run(&launch, memory).unwrap();
}

/// "Four consecutive threads load 16 bytes": the 32 bits of a register are two elements of a row of
/// the matrix, or with `.trans` of a column. Returns (row, column) of the low and the high one.
fn loaded_element(lane: usize, high: usize, transposed: bool) -> (usize, usize) {
    let (major, minor) = (lane / 4, lane % 4 * 2 + high);
    if transposed {
        (minor, major)
    } else {
        (major, minor)
    }
}

/// The lane whose address is that of a row of matrix `matrix`: "threads 0–7, 8–15, 16–23, 24–31".
fn naming_lane(matrix: usize, row: usize) -> usize {
    8 * matrix + row
}

fn ldmatrix_is_laid_out_as_in_the_isa() {
    // Every element of shared memory is its own number; rows lie apart, and in no order.
    let content: Vec<u16> = (0..64 * 8).collect();
    let place_of_row = |lane: usize| (lane * 37 + 5) % 64;
    let rows: Vec<u32> = (0..LANES)
        .map(|lane| place_of_row(lane) as u32 * 16)
        .collect();
    for (kernel, count, transposed) in [
        ("layout_load_two", 2, false),
        ("layout_load_four", 4, false),
        ("layout_load_two_transposed", 2, true),
        ("layout_load_four_transposed", 4, true),
    ] {
        let mut memory = Memory::new();
        let loaded = memory.allocate::<[u16; 2]>("loaded", LANES * count);
        let params = LayoutParams {
            content: memory.upload("content", &content).address(),
            rows: memory.upload("rows", &rows).address(),
            loaded: loaded.address(),
            content_bytes: size_of_val(&*content) as u64,
            ..LayoutParams::zeroed()
        };
        run(kernel, 1, 64 * 16, params, &mut memory);
        let loaded = memory.download(loaded).unwrap();
        for lane in 0..LANES {
            for matrix in 0..count {
                for (high, &element) in loaded[lane * count + matrix].iter().enumerate() {
                    let (row, column) = loaded_element(lane, high, transposed);
                    let expected = place_of_row(naming_lane(matrix, row)) * 8 + column;
                    assert_eq!(
                        usize::from(element),
                        expected,
                        "{kernel}: element {high} of register {matrix} of lane {lane}"
                    );
                }
            }
        }
    }
}

/// Row and column of element a0 … a7 of a lane, in A (16 × 16). Two to a register.
fn place_in_a(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread_in_group) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) {
        group
    } else {
        group + 8
    };
    let column = thread_in_group * 2 + (i & 1) + if i < 4 { 0 } else { 8 };
    (row, column)
}

/// Row and column of element b0 … b3 of a lane, in B (16 × 8). Two to a register.
fn place_in_b(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread_in_group) = (lane >> 2, lane % 4);
    let row = thread_in_group * 2 + (i & 1) + if i < 2 { 0 } else { 8 };
    (row, group)
}

/// Row and column of element c0 … c3 of a lane, in C and D (16 × 8).
fn place_in_c(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread_in_group) = (lane >> 2, lane % 4);
    let row = if i < 2 { group } else { group + 8 };
    (row, thread_in_group * 2 + (i & 1))
}

/// A type that `mma` multiplies.
#[derive(Clone, Copy, PartialEq)]
enum Element {
    F16,
    Bf16,
}

impl Element {
    fn kernel(self) -> &'static str {
        match self {
            Self::F16 => "layout_multiply_f16",
            Self::Bf16 => "layout_multiply_bf16",
        }
    }

    fn narrow(self, value: f32) -> u16 {
        match self {
            Self::F16 => f16::from_f32(value).to_bits(),
            Self::Bf16 => bf16::from_f32(value).to_bits(),
        }
    }

    fn widen(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }
}

/// The matrices of a product, by rows.
#[derive(Clone)]
struct Matrices {
    a: [[u16; 16]; 16],
    b: [[u16; 8]; 16],
    c: [[f32; 8]; 16],
}

impl Matrices {
    /// Numbers that look random, each from `value` of a number in 0 … 2³² − 1.
    fn new(element: Element, seed: u64, value: impl Fn(u32) -> f32) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            value((state >> 32) as u32)
        };
        Self {
            a: std::array::from_fn(|_| std::array::from_fn(|_| element.narrow(next()))),
            b: std::array::from_fn(|_| std::array::from_fn(|_| element.narrow(next()))),
            c: std::array::from_fn(|_| std::array::from_fn(|_| next())),
        }
    }

    /// C + A·B as the kernel makes it, read back from the lanes.
    fn by_kernel(&self, element: Element, seed: u64) -> [[f32; 8]; 16] {
        let lanes = || (0..LANES).flat_map(|lane| (0..8).map(move |i| (lane, i)));
        let a: Vec<u16> = lanes()
            .map(|(lane, i)| place_in_a(lane, i))
            .map(|(row, column)| self.a[row][column])
            .collect();
        let b: Vec<u16> = lanes()
            .filter(|(_, i)| *i < 4)
            .map(|(lane, i)| place_in_b(lane, i))
            .map(|(row, column)| self.b[row][column])
            .collect();
        let places_in_c: Vec<_> = lanes()
            .filter(|(_, i)| *i < 4)
            .map(|(lane, i)| place_in_c(lane, i))
            .collect();
        let c: Vec<f32> = places_in_c
            .iter()
            .map(|&(row, column)| self.c[row][column])
            .collect();

        let mut memory = Memory::new();
        let sums = memory.allocate::<f32>("sums", LANES * 4);
        let registers: (Vec<u32>, Vec<u32>) = (
            bytemuck::pod_collect_to_vec(&a),
            bytemuck::pod_collect_to_vec(&b),
        );
        let params = LayoutParams {
            a: memory.upload("a", &registers.0).address(),
            b: memory.upload("b", &registers.1).address(),
            c: memory.upload("c", &c).address(),
            sums: sums.address(),
            ..LayoutParams::zeroed()
        };
        run(element.kernel(), seed, 0, params, &mut memory);
        let mut result = [[f32::NAN; 8]; 16];
        for (&(row, column), sum) in places_in_c.iter().zip(memory.download(sums).unwrap()) {
            result[row][column] = sum;
        }
        result
    }

    /// The same by the definition, each sum in f32 from the first product to the last.
    fn by_definition(&self, element: Element) -> [[f32; 8]; 16] {
        std::array::from_fn(|row| {
            std::array::from_fn(|column| {
                (0..16).fold(self.c[row][column], |sum, k| {
                    sum + element.widen(self.a[row][k]) * element.widen(self.b[k][column])
                })
            })
        })
    }

    fn assert_same(&self, element: Element, seed: u64) {
        let (ours, theirs) = (self.by_kernel(element, seed), self.by_definition(element));
        let bits = |matrix: [[f32; 8]; 16]| matrix.map(|row| row.map(f32::to_bits));
        assert_eq!(
            bits(ours),
            bits(theirs),
            "{}, seed {seed}: {ours:?} is not {theirs:?}",
            element.kernel()
        );
    }
}

const ELEMENTS: [Element; 2] = [Element::F16, Element::Bf16];

/// Every element of A and B but one is zero, in turn, so that no two places can be mistaken for each
/// other.
fn mma_takes_each_element_from_its_lane() {
    for element in ELEMENTS {
        let dense = Matrices::new(element, 3, |random| (random % 61) as f32 + 1.0);
        for k in 0..16 {
            for other in 0..16 {
                let mut single = dense.clone();
                single.a = [[0; 16]; 16];
                single.a[other][k] = dense.a[other][k];
                single.assert_same(element, 0);
            }
            for other in 0..8 {
                let mut single = dense.clone();
                single.b = [[0; 8]; 16];
                single.b[k][other] = dense.b[k][other];
                single.assert_same(element, 0);
            }
        }
    }
}

/// Noise: another order of the sum, or another precision, would round to other bits.
fn mma_sums_in_f32_from_first_to_last() {
    for element in ELEMENTS {
        for seed in 0..32 {
            let noise = |random: u32| random as f32 / (1u32 << 31) as f32 - 1.0;
            Matrices::new(element, seed, noise).assert_same(element, seed);
        }
        // Products of numbers of very different sizes, subnormal halves among them.
        for seed in 0..32 {
            let sizes = |random: u32| {
                let sign = if random & 1 == 0 { 1.0 } else { -1.0 };
                let exponent = (random >> 1 & 31) as i32 - 23;
                sign * (1.0 + (random >> 8) as f32 / (1 << 24) as f32) * 2f32.powi(exponent)
            };
            Matrices::new(element, seed, sizes).assert_same(element, seed);
        }
    }
}

fn mma_lets_infinities_and_nans_through() {
    for element in ELEMENTS {
        let mut matrices = Matrices::new(element, 5, |random| (random % 7) as f32 + 1.0);
        matrices.a[2][3] = element.narrow(f32::INFINITY);
        matrices.b[4][6] = element.narrow(f32::NAN);
        let sums = matrices.by_kernel(element, 0);
        for (row, sums) in sums.iter().enumerate() {
            for (column, sum) in sums.iter().enumerate() {
                let what = format!("row {row}, column {column}: {sum}");
                if column == 6 {
                    assert!(sum.is_nan(), "{what}");
                } else {
                    assert_eq!(*sum == f32::INFINITY, row == 2, "{what}");
                }
            }
        }
    }
}

candle_trie_emulator::emulated_tests! {
    ldmatrix_is_laid_out_as_in_the_isa,
    mma_takes_each_element_from_its_lane,
    mma_sums_in_f32_from_first_to_last,
    mma_lets_infinities_and_nans_through,
}
