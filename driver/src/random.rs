//! Generates random numbers that depend on the seed alone, and not on the machine, the threads or the crate's version.

use rand::SeedableRng;

/// A stream of random numbers.
pub type Random = rand_chacha::ChaCha8Rng;

/// Purposes of random numbers. Each has a stream of its own, so that drawing more for one changes no other.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// The synthetic catalogue and its users.
    Catalogue,
    /// The choice of the rows of a file that are used.
    Sample,
    /// The first weights of a model.
    Weights,
    /// The order of the training rows.
    Order,
    /// The choice of the rows that are held out for validation.
    Validation,
    /// The values that dropout sets to 0.
    Dropout,
}

/// Returns the stream of a seed for one purpose.
pub fn random(seed: u64, purpose: Purpose) -> Random {
    random_at(seed, purpose, 0)
}

/// Returns the stream of a seed for one purpose at one moment (an epoch, a step). A run that continues from there
/// needs no random numbers from before.
pub fn random_at(seed: u64, purpose: Purpose, moment: u64) -> Random {
    let mut random = Random::seed_from_u64(seed);
    random.set_stream((moment << 8) | purpose as u64);
    random
}
