//! Running the binary on small catalogues.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use candle_core::{DType, Device};
use msl::{
    data::tokenizer::TextTokenizer,
    model::{Llama, LlamaConfig, pretrained},
};

/// Runs `msl` in a folder.
pub fn msl(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_msl"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

/// The one JSON object that a successful command prints.
pub fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", errors(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The folder of the last checkpoint of a run.
pub fn last_checkpoint(run: &Path) -> PathBuf {
    let step = |path: &PathBuf| -> Option<usize> {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("checkpoint-")?.parse().ok()
    };
    let entries = fs::read_dir(run).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| step(path).is_some())
        .max_by_key(step)
        .unwrap()
}

/// A line of a comparison.
pub fn line<'a>(comparison: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    let mut lines = comparison["rows"].as_array().unwrap().iter();
    let found = lines.find(|line| line["name"].as_str().unwrap().starts_with(name));
    found.unwrap_or_else(|| panic!("{name} is not in {comparison}"))
}

/// What a command says on standard error.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Trains on the data of a folder, which must fail and say this.
pub fn assert_training_is_refused(folder: &Path, options: &[&str], expected: &str) {
    let train = ["train", "--data", ".", "--output", "none"];
    let output = msl(folder, &[&train, options].concat());
    let said = errors(&output);
    assert!(
        !output.status.success() && said.contains(expected),
        "{said}"
    );
}

/// Writes a catalogue in the paper's format: forty books, two of them with one title, and users who read on.
pub fn write_catalogue(folder: &Path) {
    let subjects = ["Sea", "Glass", "Winter", "Garden", "Harbour"];
    let title = |item: usize| {
        let item = item.min(38);
        format!("The {} Book {}", subjects[item % 5], item / 5)
    };
    let titles: Vec<String> = (0..40)
        .map(|item| format!("\"{}\": {:?}", item + 1, title(item)))
        .collect();
    fs::write(
        folder.join("id2name4Rec.json"),
        format!("{{{}}}", titles.join(",\n")),
    )
    .unwrap();
    let rows = |users: std::ops::Range<usize>| {
        let row = |user: usize| {
            let first = user * 7 % 37 + 1;
            format!(
                "{user},\"[{}, {}, {}]\",{}\n",
                first,
                first + 1,
                first + 2,
                1_000 + user
            )
        };
        let header = "user_id,item_ids,timestamp\n".to_owned();
        header + &users.map(row).collect::<String>()
    };
    fs::write(folder.join("train.csv"), rows(0..48)).unwrap();
    fs::write(folder.join("test.csv"), rows(48..60)).unwrap();
}

/// Writes a catalogue as RecBole's atomic files: twenty films, and thirty users who watch seven in a row.
pub fn write_atomic_files(folder: &Path) {
    let items: String = (0..20)
        .map(|item| format!("f{item}\tThe {} Film {item}\n", ["Big", "Small"][item % 2]))
        .collect();
    let items = format!("item_id:token\tmovie_title:token_seq\n{items}");
    fs::write(folder.join("films.item"), items).unwrap();
    let rows: String = (0..30 * 7)
        .map(|row| (row / 7, row % 7))
        .map(|(user, place)| format!("u{user}\tf{}\t{}\n", (user * 3 + place) % 20, 100 + place))
        .collect();
    let rows = format!("user_id:token\titem_id:token\ttimestamp:float\n{rows}");
    fs::write(folder.join("films.inter"), rows).unwrap();
}

/// Writes a pretrained model as a Hugging Face folder, in bf16. It has learned nothing.
pub fn write_pretrained_model(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let tokenizer = TextTokenizer::train(["The Sea Book", "The Glass Book"].into_iter(), 280);
    let tokenizer = tokenizer.unwrap();
    let config = LlamaConfig {
        vocab_size: tokenizer.vocabulary(),
        hidden_size: 16,
        intermediate_size: 32,
        ..LlamaConfig::default()
    };
    let model = Llama::random(config.clone(), 3, DType::BF16, &Device::Cpu);
    let weights = model.unwrap().merged_weights().unwrap();
    pretrained::save(folder, &config, &tokenizer, &weights).unwrap();
}

/// Options of a training that takes a moment.
pub const SMALL: [&str; 14] = [
    "--hidden",
    "16",
    "--intermediate",
    "32",
    "--layers",
    "1",
    "--heads",
    "2",
    "--key-value-heads",
    "1",
    "--batch-size",
    "16",
    "--epochs",
    "2",
];
