//! `msl`: tune and evaluate a language model as a recommender with the masked softmax loss.

fn main() {}
