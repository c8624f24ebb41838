//! Decoding over the trie: what the searches find, against every path's probability.

mod beam;
mod codes;
mod exact;
mod excluded;
mod model;
mod random;

#[path = "../fuzz/mod.rs"]
mod fuzz;
