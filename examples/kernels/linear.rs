//! The least that the operation over hidden states and a head must move and compute.

use candle_trie::launch::{DeviceLimits, Element, LinearForward, TemperaturePlan};
use candle_trie::{MaskedSoftmaxLoss, Temperature};

use crate::moved::CARDS;
use crate::support::{LLAMA_3_8B, MODELS, Model, Shape};

/// What the plan of the launches is made for.
const H100: DeviceLimits = DeviceLimits {
    multiprocessors: 132,
    shared_bytes_per_block: 227 << 10,
    shared_bytes_per_multiprocessor: 228 << 10,
};

pub fn print() {
    println!(
        "\n## Hidden states × head\n\n\
         Loss and hidden gradient of the 128 Books responses with a frozen head, in bf16, for several \
         models: Llama's have the batch under\nLlama 3's tokenizer, the others under SmolLM2's. *Valid \
         logits* are those of branching rows, *head rows* the distinct ones among them.\n*Head* is each \
         of these head rows read once; *least* also each branching row's hidden states read once and \
         the gradient of all\npositions written once; operations are two products, a multiplication \
         and an addition a pair; floors are of *least*. Launches are\nours and cuBLAS's, backward \
         included, at a given temperature. What the kernels move is counted by the tests \
         (`emulator_linear`), at\nsmaller sizes.\n"
    );
    print!("| | V | H | positions | branching rows | valid logits | head rows |");
    print!(" head, MB | least, MB | GFLOP | launches |");
    for (card, _) in CARDS {
        print!(" floor {card}, µs |");
    }
    println!("\n|---|{}", "---:|".repeat(CARDS.len() + 10));
    for model in MODELS.iter().chain([&LLAMA_3_8B]) {
        print_row(model);
    }
}

fn print_row(model: &Model) {
    let (shape, width) = (model.books(), model.hidden);
    let (positions, branching) = (shape.rows.positions(), branching_rows(&shape));
    let (logits, head_rows) = (shape.branching_logits(), shape.distinct_tokens().len());
    let bytes = |rows: usize| (2 * rows * width) as f64;
    let least = bytes(head_rows + branching + positions);
    print!(
        "| {} | {} | {width} | {positions} | {branching} | {logits} | {head_rows} |",
        model.name, model.vocabulary
    );
    print!(
        " {:.1} | {:.1} | {:.2} | {} |",
        bytes(head_rows) / 1e6,
        least / 1e6,
        (4 * logits * width) as f64 / 1e9,
        launches(&shape, width)
    );
    for (_, speed) in CARDS {
        print!(" {:.1} |", least / (speed * 1e6));
    }
    println!();
}

fn branching_rows(shape: &Shape) -> usize {
    (shape.rows.as_slice().iter())
        .filter(|row| shape.set_size(row.set) > 1)
        .count()
}

/// Those of a forward and a backward pass.
fn launches(shape: &Shape, width: usize) -> usize {
    let loss = MaskedSoftmaxLoss::new(&shape.sets, Temperature::fixed(1.0)).expect("a loss");
    let rows = loss.linear_rows(&shape.rows, |_| true).expect("rows");
    let given = TemperaturePlan::at(1.0);
    let plan = LinearForward::new(&rows, Element::Bf16, width, given, true, &H100);
    plan.expect("a width").launches() + 1
}
