//! What holds for every catalogue, every batch and every split of one.

mod catalogue;
mod loss;
mod rows;
mod statistics;
mod trie;
