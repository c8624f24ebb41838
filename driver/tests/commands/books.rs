//! Training and evaluation on the paper's Books catalogue, where `CANDLE_TRIE_BOOKS` names its folder.

use std::env;

use crate::running::{json, msl};

#[test]
fn a_short_training_falls_and_can_be_evaluated() {
    let Ok(books) = env::var("CANDLE_TRIE_BOOKS") else {
        eprintln!("skipped: CANDLE_TRIE_BOOKS names no folder");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let trained = json(&msl(
        folder.path(),
        &[
            "train",
            "--data",
            &books,
            "--output",
            "run",
            "--samples",
            "160",
            "--epochs",
            "1",
            "--batch-size",
            "8",
            "--hidden",
            "64",
            "--intermediate",
            "128",
            "--heads",
            "2",
            "--key-value-heads",
            "1",
            "--json",
        ],
    ));
    let loss = |name: &str| trained[name].as_f64().unwrap();
    assert!(loss("last_loss") < 0.9 * loss("first_loss"), "{trained}");
    let evaluated = json(&msl(
        folder.path(),
        &[
            "evaluate",
            "run",
            "--data",
            &books,
            "--samples",
            "32",
            "--json",
        ],
    ));
    let nll = evaluated["rows"][1]["item_nll"].as_f64().unwrap();
    // Uniform over the titles is 8.75. So short a training need not be below it, but stays near.
    assert!(nll > 0.0 && nll < 11.0, "{evaluated}");
}
