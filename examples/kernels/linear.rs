//! The least that the operation over hidden states and a head must move and compute.

use candle_trie::launch::{DenseTemperature, DeviceLimits, Element, LinearForward};
use candle_trie::{MaskedSoftmaxLoss, Temperature};

use crate::moved::CARDS;
use crate::support::{LLAMA_3_8B, MODELS, Shape};

/// What the plan of the launches is made for.
const H100: DeviceLimits = DeviceLimits {
    multiprocessors: 132,
    shared_bytes_per_block: 227 << 10,
    shared_bytes_per_multiprocessor: 228 << 10,
};
pub fn print() {
    let shape = Shape::books();
    let (logits, tokens) = (shape.branching_logits(), shape.distinct_tokens().len());
    let size = |set: u32| shape.sets.get(set).map_or(0, |set| set.len());
    let branching = (shape.rows.as_slice().iter())
        .filter(|row| size(row.set) > 1)
        .count();
    println!(
        "\n## Hidden states × head\n\n\
         The same batch for models of several widths, in bf16, loss and hidden gradient with a frozen \
         head: {logits} valid logits over {tokens} distinct\nhead rows in {branching} branching rows. \
         The vocabulary does not matter. *Least* is each of these head rows and hidden states read \
         once and\nthe gradient of all {} positions written once; operations are two products, a \
         multiplication and an addition a pair. Launches are ours and\ncuBLAS's, backward included, \
         at a given temperature. What the kernels move is counted by the tests (`emulator_linear`), at \
         smaller sizes.\n",
        shape.rows.positions()
    );
    print!("| | H | least, MB | GFLOP | launches |");
    for (card, _) in CARDS {
        print!(" floor {card}, µs |");
    }
    println!("\n|---|{}", "---:|".repeat(CARDS.len() + 4));
    let loss = MaskedSoftmaxLoss::new(&shape.sets, Temperature::fixed(1.0)).expect("a loss");
    let rows = loss.linear_rows(&shape.rows, |_| true).expect("rows");
    for model in MODELS.iter().chain([&LLAMA_3_8B]) {
        let width = model.hidden;
        let given = DenseTemperature::at(1.0);
        let plan = LinearForward::new(&rows, Element::Bf16, width, given, true, &H100);
        let launches = plan.expect("a width").launches() + 1;
        let elements = (tokens + branching + shape.rows.positions()) * width;
        let bytes = 2.0 * elements as f64;
        print!(
            "| {} | {width} | {:.1} | {:.2} | {launches} |",
            model.name,
            bytes / 1e6,
            (4 * logits * width) as f64 / 1e9
        );
        for (_, speed) in CARDS {
            print!(" {:.1} |", bytes / (speed * 1e6));
        }
        println!();
    }
}
