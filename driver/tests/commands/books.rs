//! Training and evaluation on the paper's Books catalogue, where `CANDLE_TRIE_BOOKS` names its folder.

use std::env;

use crate::running::{json, line, msl};

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
            "48",
            "--epochs",
            "8",
            "--batch-size",
            "16",
            "--learning-rate",
            "1e-2",
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
    // A few rows, learned by heart.
    assert!(loss("last_loss") < 0.7 * loss("first_loss"), "{trained}");
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
    let nll = line(&evaluated, "run")["item_nll"].as_f64().unwrap();
    // Uniform over the titles is 8.75: rows that are learned by heart help no other user, but the sum stays near.
    assert!(nll > 0.0 && nll < 14.0, "{evaluated}");
}
