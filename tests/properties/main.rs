//! What holds for every catalogue, every batch and every split of one.

mod calls;
mod catalogue;
mod loss;
mod odd_arguments;
mod rows;
mod statistics;
mod trie;

#[path = "../fuzz/mod.rs"]
mod fuzz;
