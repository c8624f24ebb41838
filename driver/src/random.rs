//! Random numbers that depend on the seed and on nothing else: not on the machine, the threads or the crate's version.

use rand::{RngCore, SeedableRng};

/// A stream of random numbers.
pub type Random = rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for. Each purpose has its own, so that more of one changes no other.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// The synthetic catalogue and its users.
    Catalogue,
    /// Which rows of a file are used.
    Sample,
    /// The first weights of a model.
    Weights,
    /// The order of the training rows.
    Order,
    /// What drops out in training.
    Noise,
}

/// The stream of a seed for one purpose.
pub fn random(seed: u64, purpose: Purpose) -> Random {
    let mut random = Random::seed_from_u64(seed);
    random.set_stream(purpose as u64);
    random
}

/// The noise of one shard of one step: it depends on the seed and on these alone, so that a run can go on anywhere.
pub fn noise(seed: u64, step: usize, shard: usize) -> u64 {
    let mut random = random(seed, Purpose::Noise);
    random.set_word_pos(((step as u128) << 20 | shard as u128) << 1);
    random.next_u64()
}
