use std::collections::{HashMap, HashSet};

use anyhow::{Result, ensure};
use candle_core::Device;
use serde::Serialize;

use super::opened_run::OpenedRun;
use crate::{
    arguments::RecommendArguments,
    catalogue::Item,
    console::{print, print_json, table},
    run_folder::RunFolder,
    search::{SearchSettings, Searcher},
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
    let folder = arguments.moved.apply(RunFolder::open(&arguments.run)?)?;
    let run = OpenedRun::new(folder, arguments.checkpoint, &device.into())?;
    let items = run.dataset.catalogue.items();
    let history = known_titles(&arguments.history, items);
    let prompt = run.folder.settings().prompt.prompt();
    let prompt = prompt.text(history.iter().map(String::as_str));
    let prompt = run.checkpoint.tokenizer.encode_prompt(&prompt)?;
    let seen = |item: &&Item| arguments.unseen && history.contains(&item.title);
    let left_out: Vec<u64> = items.iter().filter(seen).map(|item| item.id).collect();
    let temperature = run.temperature(arguments.temperature);
    let search = SearchSettings {
        search: arguments.search,
        beams: arguments.beams.unwrap_or(arguments.top),
        ..SearchSettings::default()
    };
    let searcher = Searcher::new(&run.trie, &run.checkpoint.model, search, temperature)?;
    let found = searcher.recommend(&[&prompt], &[left_out])?.found;
    let titled = found.into_iter().flatten().filter_map(|found| {
        let title = run.dataset.catalogue.title(*found.items.first()?)?;
        Some((title, found))
    });
    let report = Report {
        command: "recommend",
        history: &history,
        temperature,
        recommended: (1..)
            .zip(titled.take(arguments.top))
            .map(|(rank, (title, found))| Recommended {
                rank,
                title,
                items: found.items,
                probability: found.log_probability.exp(),
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
    print(&table)
}

/// Titles as the catalogue writes them: those that it has, else those of the same letters in another case. One that it
/// does not know stays as it is.
fn known_titles(history: &[String], items: &[Item]) -> Vec<String> {
    let titles = || items.iter().map(|item| item.title.as_str());
    let exact: HashSet<&str> = titles().collect();
    let other_case: HashMap<String, &str> = titles()
        .map(|title| (title.to_lowercase(), title))
        .collect();
    let known = |title: &String| {
        if exact.contains(title.as_str()) {
            return title.clone();
        }
        match other_case.get(&title.to_lowercase()) {
            Some(known) => (*known).to_owned(),
            None => {
                eprintln!("{title:?} is not in the catalogue; the model reads it as it is");
                title.clone()
            }
        }
    };
    history.iter().map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_that_the_catalogue_has_is_not_taken_for_one_in_another_case() {
        let item = |(id, title): (u64, &&str)| Item {
            id,
            title: (*title).into(),
        };
        let titles = ["SEA", "Sea", "sea", "The Wall"];
        let items: Vec<Item> = (0..).zip(&titles).map(item).collect();
        let history = titles.map(str::to_owned);
        assert_eq!(known_titles(&history, &items), history);
        let other = ["the wall", "Unheard of"].map(str::to_owned);
        assert_eq!(known_titles(&other, &items), ["The Wall", "Unheard of"]);
    }
}
