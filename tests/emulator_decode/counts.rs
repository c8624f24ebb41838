//! How much is moved.

use candle_trie::{BeamSearch, Normalisation, TokenTrie};
use candle_trie_emulator::Emulator;
use half::bf16;

use crate::device::{Answer, Logits, decode};
use crate::emulated::noise;

const USERS: usize = 5;

/// A step of all users at a root of so many tokens, every other one with two tokens behind it, of which each user leaves some
/// out.
fn first_step(
    tokens: u32,
    excluded: u64,
    width: usize,
    normalise: Normalisation,
    row_stride: usize,
) -> (Answer, usize) {
    step_with_beams(10, tokens, excluded, width, normalise, row_stride)
}

fn step_with_beams(
    kept: usize,
    tokens: u32,
    excluded: u64,
    width: usize,
    normalise: Normalisation,
    row_stride: usize,
) -> (Answer, usize) {
    let items = (0..tokens).flat_map(|token| {
        let path = move |next: u32| (u64::from(2 * token + next), vec![token, next, 0]);
        (0..1 + token % 2).map(path)
    });
    let trie = TokenTrie::new(items).unwrap();
    let search = BeamSearch::new(&trie, USERS, kept, 1.3).unwrap();
    let search = search.with_normalisation(normalise);
    let excluded: Vec<Vec<u64>> = vec![(0..2 * excluded).collect(); USERS];
    let search = search.exclude_items(&excluded).unwrap();
    let values: Vec<f64> = noise(USERS * width).into_iter().map(f64::from).collect();
    let logits = Logits::<bf16>::new(&values, width).spread(row_stride);
    let beams = search.decode_beams().unwrap();
    let answer = decode(&Emulator::default().traced(), &beams, &logits).unwrap();
    (answer, beams.candidates())
}

fn a_valid_logit_is_loaded_once() {
    for excluded in [0, 40] {
        let (answer, candidates) = first_step(300, excluded, 4096, Normalisation::Trie, 4096);
        assert_eq!(candidates as u64, USERS as u64 * (300 - excluded));
        let report = &answer.scores;
        assert_eq!(report.traffic("logits").loaded, (USERS * 300 * 2) as u64);
        assert_eq!(report.traffic("edges").loaded, 16 * candidates as u64);
        let log_probabilities = report.traffic("log-probabilities");
        assert_eq!(log_probabilities.loaded, 4 * candidates as u64);
        assert_eq!(log_probabilities.stored, 8 * candidates as u64);
        let ranks = report.traffic("ranks");
        assert_eq!((ranks.loaded, ranks.stored), (0, 16 * candidates as u64));
    }
}

fn a_whole_vocabulary_streams() {
    let width = 13_011;
    let (answer, candidates) = first_step(300, 0, width, Normalisation::Vocabulary, width);
    let logits = answer.scores.traffic("logits");
    assert_eq!(logits.loaded, 2 * (USERS * width + candidates) as u64);
    let waste = logits.load_sectors as f64 / logits.least_load_sectors as f64;
    assert!(waste <= 1.1, "{waste}");
    let log_probabilities = answer.scores.traffic("log-probabilities");
    assert_eq!(log_probabilities.stored, 4 * candidates as u64);
    assert_eq!(log_probabilities.loaded, 0);
}

fn a_rank_is_read_a_few_times_whatever_the_number_of_beams() {
    for kept in [1, 10, 200] {
        let (answer, candidates) = step_with_beams(kept, 900, 0, 1024, Normalisation::Trie, 1024);
        let ranks = answer.choosing.traffic("ranks");
        let segments = 2 * USERS;
        // The bounds, two to four ranges, and the list; then the choices are compared with each other.
        let selected = 6 * candidates;
        let sorted = segments * kept * (kept + 1);
        assert!(ranks.loaded >= 16 * candidates as u64);
        let most = 16 * (selected + sorted) as u64;
        assert!(ranks.loaded <= most, "{kept}: {} > {most}", ranks.loaded);
        let chosen = (segments * kept) as u64;
        assert_eq!(answer.choosing.traffic("choices").stored, 8 * chosen);
        assert_eq!(
            answer.choosing.traffic("log-probabilities").loaded,
            4 * chosen
        );
    }
}

fn reductions_of_scores_have_no_bank_conflicts() {
    for normalise in [Normalisation::Trie, Normalisation::Vocabulary] {
        let (answer, _) = first_step(64, 0, 128, normalise, 128);
        assert_eq!(answer.scores.shared.bank_conflicts, 0);
    }
}

candle_trie_emulator::emulated_tests! {
    a_valid_logit_is_loaded_once,
    a_whole_vocabulary_streams,
    a_rank_is_read_a_few_times_whatever_the_number_of_beams,
    reductions_of_scores_have_no_bank_conflicts,
}
