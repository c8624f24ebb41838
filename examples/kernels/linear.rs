//! The least that the operation over hidden states and a head must move and compute.

use candle_trie::launch::{Element, LinearGradients};

use crate::moved::CARDS;
use crate::recorder::issue_linear;
use crate::resources;
use crate::support::{Model, Shape, kernel_models};

pub fn print() {
    println!(
        "\n## Hidden states × head\n\n\
         Loss and hidden gradient in bf16, with a head that is not trained, for several models. Llama's have the batch of 128 Books responses under\n\
         Llama 3's tokenizer, and SmolLM2 and Qwen2.5 that under SmolLM2's. *Semantic IDs* are 512 responses over 10 million random items of three codes,\n\
         for a model of Llama-3.2-1B's width (`benches/support/semantic_ids.rs`).\n\
         \n\
         *Valid logits* are those of branching rows, and *head rows* are their distinct tokens. *Head* is the bytes of these head rows, read once. *Least*\n\
         adds the hidden states of each branching row, read once, and the gradient of all positions, written once. The floors are of *least*. GFLOP are\n\
         those of two products. *Launches* are those of a forward and a backward pass. Value and gradient in one pass take one launch less. One upload, of\n\
         *uploaded* kB, comes before them. The tests (`emulator_linear`) count the bytes that the kernels move, at smaller sizes.\n"
    );
    print!("| | V | H | positions | branching rows | valid logits | head rows |");
    print!(" head, MB | least, MB | GFLOP | launches | uploaded, kB |");
    for (card, _) in CARDS {
        print!(" floor {card}, µs |");
    }
    println!("\n|---|{}", "---:|".repeat(CARDS.len() + 11));
    for model in kernel_models() {
        print_row(&model);
    }
}

fn print_row(model: &Model) {
    let (shape, width) = (model.batch(), model.hidden);
    let (positions, branching) = (shape.rows.positions(), shape.branching_rows());
    let (logits, head_rows) = (shape.branching_logits(), shape.distinct_tokens().len());
    let bytes = |rows: usize| (2 * rows * width) as f64;
    let least = bytes(head_rows + branching + positions);
    let (launches, uploaded) = launched(&shape, width);
    print!(
        "| {} | {} | {width} | {positions} | {branching} | {logits} | {head_rows} |",
        model.name, model.vocabulary
    );
    print!(
        " {:.1} | {:.1} | {:.2} | {launches} | {:.0} |",
        bytes(head_rows) / 1e6,
        least / 1e6,
        (4 * logits * width) as f64 / 1e9,
        uploaded as f64 / 1e3
    );
    for (_, speed) in CARDS {
        print!(" {:.1} |", least / (speed * 1e6));
    }
    println!();
}

/// Those of a forward and a backward pass on an H100.
fn launched(shape: &Shape, width: usize) -> (usize, usize) {
    let card = resources::CARDS.iter().find(|card| card.name == "H100");
    let limits = &card.expect("a card of that name").limits;
    let hidden = LinearGradients::Hidden;
    let issued = issue_linear(shape, width, Element::Bf16, hidden, limits).expect("a plan");
    (issued.launches.len(), issued.uploaded_bytes)
}
