use std::collections::HashMap;

use anyhow::{Result, ensure};
use candle_core::Device;
use serde::Serialize;

use super::opened_run::OpenedRun;
use crate::{
    arguments::RecommendArguments,
    catalogue::Item,
    evaluate::{Evaluator, Recommendation},
    report::{print_json, table},
};

#[derive(Serialize)]
struct Recommended<'a> {
    rank: usize,
    title: &'a str,
    items: Vec<u64>,
    probability: f64,
}

#[derive(Serialize)]
struct Report<'a> {
    command: &'static str,
    history: &'a [String],
    temperature: f64,
    recommended: Vec<Recommended<'a>>,
}

/// `msl recommend`
pub fn recommend(arguments: &RecommendArguments, device: &Device) -> Result<()> {
    ensure!(arguments.top > 0, "--top is 0");
    let run = OpenedRun::new(&arguments.run, arguments.checkpoint, None, device)?;
    let items = run.dataset.catalogue.items();
    let history = known_titles(&arguments.history, items);
    let prompt = run.folder.settings().prompt.prompt();
    let prompt = prompt.text(history.iter().map(String::as_str));
    let prompt = run.checkpoint.tokenizer.encode(&prompt)?;
    let unwanted = if arguments.unseen { history.len() } else { 0 };
    let evaluator = Evaluator {
        trie: &run.trie,
        beams: arguments.beams.unwrap_or(arguments.top + unwanted),
        batch_size: 1,
        temperature: run.temperature(arguments.temperature),
    };
    let found = evaluator.recommend(&run.checkpoint.model, &prompt)?;
    let title = |found: &Recommendation| -> Option<&str> {
        run.dataset.catalogue.title(*found.items.first()?)
    };
    let wanted = found.into_iter().filter_map(|found| {
        let title = title(&found)?;
        let seen = history.iter().any(|seen| seen == title);
        (!(arguments.unseen && seen)).then_some((title, found))
    });
    let recommended = (1..).zip(wanted.take(arguments.top));
    let report = Report {
        command: "recommend",
        history: &history,
        temperature: evaluator.temperature,
        recommended: recommended
            .map(|(rank, (title, found))| Recommended {
                rank,
                title,
                items: found.items,
                probability: found.probability,
            })
            .collect(),
    };
    if arguments.json {
        return print_json(&report);
    }
    let mut table = table(&["title", "probability", "rank"]);
    for line in &report.recommended {
        table.add_row([
            line.title.to_owned(),
            format!("{:.4}", line.probability),
            line.rank.to_string(),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Titles as the catalogue writes them, whatever their case; one that it does not know stays as it is.
fn known_titles(history: &[String], items: &[Item]) -> Vec<String> {
    let titles: HashMap<String, &str> = (items.iter())
        .map(|item| (item.title.to_lowercase(), item.title.as_str()))
        .collect();
    let known = |title: &String| match titles.get(&title.to_lowercase()) {
        Some(known) => (*known).to_owned(),
        None => {
            eprintln!("{title:?} is not in the catalogue; the model reads it as it is");
            title.clone()
        }
    };
    history.iter().map(known).collect()
}
