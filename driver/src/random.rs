//! Random numbers that depend on the seed and on nothing else: not on the machine, the threads or the crate's version.

use rand::SeedableRng;

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
    /// Which rows are held out for validation.
    Validation,
    /// What dropout leaves out.
    Dropout,
}

/// The stream of a seed for one purpose.
pub fn random(seed: u64, purpose: Purpose) -> Random {
    random_at(seed, purpose, 0)
}

/// The stream of a seed for one purpose at one moment (an epoch, a step). A run that goes on from there needs nothing of
/// what came before.
pub fn random_at(seed: u64, purpose: Purpose, moment: u64) -> Random {
    let mut random = Random::seed_from_u64(seed);
    random.set_stream((moment << 8) | purpose as u64);
    random
}
