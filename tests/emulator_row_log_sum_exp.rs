//! `kernels/row_log_sum_exp.cu` and its plan, against f64.

mod emulated;

use bytemuck::Pod;
use candle_trie::Row;
use candle_trie::launch::{Element, RowLogSumExp, TokenSetsView};
use candle_trie_emulator::{Buffer, Emulator, Fault, Memory, Report, same_for_every_schedule};
use emulated::{LIMITS, SEEDS, noise, run};
use half::{bf16, f16};

const VOCABULARY: usize = 1003;
const POSITIONS: usize = 7;

/// Sets of 1, 2, 33, 300 and 0 tokens.
fn token_sets() -> (Vec<u32>, Vec<u32>) {
    let sizes = [1, 2, 33, 300, 0];
    let mut offsets = vec![0];
    let mut tokens = Vec::new();
    for size in sizes {
        tokens.extend((0..size).map(|index| index * (VOCABULARY as u32 / size) + size % 7));
        offsets.push(tokens.len() as u32);
    }
    (offsets, tokens)
}

/// Every set at some position, in no order; more rows than blocks, which so take several each.
fn rows(sets: u32) -> Vec<Row> {
    (0..101)
        .map(|row| Row {
            position: row * 5 % POSITIONS as u32,
            set: row * 3 % sets,
            target: 0,
        })
        .collect()
}

/// What is run, and how.
struct Case<'a, T> {
    element: Element,
    logits: &'a [T],
    row_stride: usize,
    rows: &'a [Row],
    sets: Option<(&'a [u32], &'a [u32])>,
    temperature: f32,
}

impl<T: Pod> Case<'_, T> {
    fn run(&self, emulator: &Emulator) -> Result<(Vec<f32>, Report), Fault> {
        let mut memory = Memory::new();
        let logits = memory.upload("logits", self.logits);
        self.run_at(emulator, memory, logits.address())
    }

    fn run_at(
        &self,
        emulator: &Emulator,
        mut memory: Memory,
        logits: u64,
    ) -> Result<(Vec<f32>, Report), Fault> {
        let out: Buffer<f32> = memory.allocate("out", self.rows.len());
        let (offsets, tokens) = self.sets.map_or((0, 0), |(offsets, tokens)| {
            (
                memory.upload("offsets", offsets).address(),
                memory.upload("tokens", tokens).address(),
            )
        });
        let plan = RowLogSumExp {
            element: self.element,
            logits,
            row_stride: self.row_stride as u64,
            rows: memory.upload("rows", self.rows).address(),
            row_count: self.rows.len() as u32,
            sets: TokenSetsView {
                offsets,
                tokens,
                vocabulary: VOCABULARY as u64,
            },
            temperature: self.temperature,
            out: out.address(),
        };
        let launch = plan.launch(&LIMITS).expect("there are rows");
        let report = run(emulator, &launch, &mut memory)?;
        Ok((memory.download(out)?, report))
    }

    /// The same in f64.
    fn expected(&self, widen: impl Fn(T) -> f64) -> Vec<f64> {
        let of_row = |row: &Row| {
            let all: Vec<u32> = (0..VOCABULARY as u32).collect();
            let tokens = self.sets.map_or(&all[..], |(offsets, tokens)| {
                &tokens[offsets[row.set as usize] as usize..offsets[row.set as usize + 1] as usize]
            });
            let start = row.position as usize * self.row_stride;
            let logit = |&token: &u32| {
                widen(self.logits[start + token as usize]) / f64::from(self.temperature)
            };
            let maximum = tokens.iter().map(logit).fold(f64::NEG_INFINITY, f64::max);
            maximum
                + tokens
                    .iter()
                    .map(|token| (logit(token) - maximum).exp())
                    .sum::<f64>()
                    .ln()
        };
        self.rows.iter().map(of_row).collect()
    }

    fn assert_correct(&self, widen: impl Fn(T) -> f64) {
        let ours = same_for_every_schedule(SEEDS, |emulator| Ok(self.run(&emulator)?.0)).unwrap();
        for (row, (ours, expected)) in ours.into_iter().zip(self.expected(widen)).enumerate() {
            let close = (f64::from(ours) - expected).abs() <= 1e-6 * expected.abs().max(1.0);
            let empty = ours == f32::NEG_INFINITY && !expected.is_finite();
            assert!(
                close || empty,
                "{:?}, row {row}: {ours}, not {expected}",
                self.element
            );
        }
    }
}

fn assert_correct_in_every_element(
    logits: &[f32],
    row_stride: usize,
    rows: &[Row],
    sets: Option<(&[u32], &[u32])>,
    temperature: f32,
) {
    let halves: Vec<u16> = logits
        .iter()
        .map(|&logit| f16::from_f32(logit).to_bits())
        .collect();
    let brains: Vec<u16> = logits
        .iter()
        .map(|&logit| bf16::from_f32(logit).to_bits())
        .collect();
    let half = |logits| Case {
        element: Element::F16,
        logits,
        row_stride,
        rows,
        sets,
        temperature,
    };
    Case {
        element: Element::F32,
        logits,
        row_stride,
        rows,
        sets,
        temperature,
    }
    .assert_correct(f64::from);
    half(&halves[..]).assert_correct(|bits| f16::from_bits(bits).to_f64());
    Case {
        element: Element::Bf16,
        ..half(&brains)
    }
    .assert_correct(|bits| bf16::from_bits(bits).to_f64());
}

fn rows_over_token_sets_are_those_of_f64() {
    let (offsets, tokens) = token_sets();
    let rows = rows(5);
    for (scale, temperature) in [(3.0, 1.0), (3.0, 2.5), (1e4, 1.5)] {
        // Rows that do not touch each other.
        let row_stride = VOCABULARY + 5;
        let logits: Vec<f32> = noise(POSITIONS * row_stride)
            .into_iter()
            .map(|logit| logit * scale)
            .collect();
        assert_correct_in_every_element(
            &logits,
            row_stride,
            &rows,
            Some((&offsets, &tokens)),
            temperature,
        );
    }
}

fn rows_over_the_whole_vocabulary_are_those_of_f64() {
    let logits = noise(POSITIONS * VOCABULARY);
    assert_correct_in_every_element(&logits, VOCABULARY, &rows(3), None, 1.5);
}

fn offsets_pass_two_to_the_thirty_one() {
    let (offsets, tokens) = token_sets();
    let logits = noise(VOCABULARY);
    let near = [Row {
        position: 0,
        set: 3,
        target: 0,
    }];
    let far = [Row {
        position: 5_000_000,
        ..near[0]
    }];
    let case = |rows| Case {
        element: Element::F32,
        logits: &logits,
        row_stride: VOCABULARY,
        rows,
        sets: Some((&offsets[..], &tokens[..])),
        temperature: 1.0,
    };
    let mut memory = Memory::new();
    let window = memory.upload("logits", &logits);
    let base = window.address_as_window(5_000_000 * VOCABULARY as u64);
    let (far, _) = case(&far[..])
        .run_at(&Emulator::default(), memory, base)
        .unwrap();
    let (near, _) = case(&near[..]).run(&Emulator::default()).unwrap();
    assert_eq!(far, near);
}

fn a_valid_logit_is_loaded_once_and_no_other() {
    let (offsets, tokens) = token_sets();
    let rows = rows(5);
    let logits = noise(POSITIONS * VOCABULARY);
    let case = Case {
        element: Element::F32,
        logits: &logits[..],
        row_stride: VOCABULARY,
        rows: &rows,
        sets: Some((&offsets, &tokens)),
        temperature: 1.0,
    };
    let (_, report) = case.run(&Emulator::default().traced()).unwrap();
    let valid: u64 = rows
        .iter()
        .map(|row| u64::from(offsets[row.set as usize + 1] - offsets[row.set as usize]))
        .sum();
    assert_eq!(report.traffic("logits").loaded, 4 * valid);
    assert_eq!(report.traffic("tokens").loaded, 4 * valid);
    assert_eq!(report.traffic("out").stored, 4 * rows.len() as u64);
    assert_eq!(report.shared.bank_conflicts, 0);
}

#[test]
fn there_is_no_launch_without_rows() {
    let sets = TokenSetsView {
        offsets: 0,
        tokens: 0,
        vocabulary: 1,
    };
    let plan = RowLogSumExp {
        element: Element::F32,
        logits: 0,
        row_stride: 1,
        rows: 0,
        row_count: 0,
        sets,
        temperature: 1.0,
        out: 0,
    };
    assert_eq!(plan.launch(&LIMITS), None);
}

candle_trie_emulator::emulated_tests! {
    rows_over_token_sets_are_those_of_f64,
    rows_over_the_whole_vocabulary_are_those_of_f64,
    offsets_pass_two_to_the_thirty_one,
    a_valid_logit_is_loaded_once_and_no_other,
}
