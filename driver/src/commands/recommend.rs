mod users;

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use candle_trie::SearchResult;
use serde::Serialize;

use super::opened_run::OpenedRun;
use crate::{
    commands::arguments::RecommendArguments,
    console::{print, print_json, shown, table},
    data::{
        catalogue::{Catalogue, quoted},
        examples::warn_of_long_rows,
    },
    evaluate::search::{SearchSettings, Searcher},
    run::folder::RunFolder,
};

use users::recommend_to_users;

#[derive(Serialize)]
struct Recommended<'a> {
    rank: usize,
    title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    codes: Option<String>,
    items: Vec<&'a str>,
    probability: f64,
}

#[derive(Serialize)]
struct Report<'a> {
    command: &'static str,
    history: Vec<String>,
    temperature: f64,
    recommended: Vec<Recommended<'a>>,
}

/// Runs `msl recommend`.
pub fn recommend(arguments: &RecommendArguments, device: &Device) -> Result<()> {
    let folder = arguments.moved.apply(RunFolder::open(&arguments.run)?)?;
    let run = OpenedRun::new(folder, arguments.checkpoint, &device.into())?;
    let catalogue = &run.dataset.catalogue;
    let temperature = run.temperature(arguments.temperature);
    let beams = arguments.beams.unwrap_or(arguments.top);
    ensure!(
        beams >= arguments.top,
        "--beams {beams} cannot find the {} titles of --top: give at least as many beams",
        arguments.top
    );
    let search = SearchSettings {
        search: arguments.search,
        beams,
        ..SearchSettings::default()
    };
    let searcher = Searcher::new(
        run.responses.trie(),
        &run.checkpoint.model,
        search,
        temperature,
    )?;
    if let (Some(users), Some(output)) = (&arguments.users, &arguments.output) {
        return recommend_to_users(arguments, users, output, &run, &searcher);
    }
    let history = entries(&arguments.history, catalogue)?;
    let prompt = &run.folder.settings().prompt;
    let prompt = prompt.text(history.iter().map(|entry| entry.name(catalogue)));
    let prompt = run.checkpoint.tokenizer.encode_prompt(&prompt)?;
    let positions = run.checkpoint.model.config().max_position_embeddings;
    warn_of_long_rows([prompt.len()].into_iter(), positions);
    let mut excluded = Vec::new();
    for entry in history.iter().filter(|_| arguments.unseen) {
        if let Entry::Item(number) = entry {
            excluded.extend(run.responses.together_with(*number)?);
        }
    }
    let found = (searcher.recommend(&[&prompt], &[excluded]))
        .with_context(|| arguments.run.display().to_string())?
        .found;
    let report = Report {
        command: "recommend",
        history: history.iter().map(|entry| entry.label(catalogue)).collect(),
        temperature,
        recommended: recommended(
            found.first().map_or(&[], |found| found),
            catalogue,
            arguments.top,
        ),
    };
    if arguments.json {
        return print_json(&report);
    }
    let mut table = table(&["title", "probability", "rank"]);
    for line in &report.recommended {
        table.add_row([
            shown(&line.title),
            format!("{:.4}", line.probability),
            line.rank.to_string(),
        ]);
    }
    print(&table)
}

/// Returns the first `top` of what was found.
fn recommended<'a>(
    found: &[SearchResult],
    catalogue: &'a Catalogue,
    top: usize,
) -> Vec<Recommended<'a>> {
    let codes = |item| catalogue.semantic_ids().and_then(|codes| codes.text(item));
    let numbered = (1..).zip(found).take(top);
    numbered
        .filter_map(|(rank, found)| {
            let first = *found.items.first()?;
            Some(Recommended {
                rank,
                title: catalogue.label(first),
                codes: codes(first),
                items: catalogue.ids(&found.items).collect(),
                probability: found.log_probability.exp(),
            })
        })
        .collect()
}

/// An entry of a history on the command line.
#[derive(Debug, PartialEq)]
enum Entry {
    /// The number of an item.
    Item(u64),
    /// A title that the catalogue does not have.
    Unknown(String),
}

impl Entry {
    /// Returns the text that stands for it in a prompt.
    fn name(&self, catalogue: &Catalogue) -> String {
        match self {
            Self::Item(number) => catalogue.name(*number),
            Self::Unknown(title) => quoted(title),
        }
    }

    fn label(&self, catalogue: &Catalogue) -> String {
        match self {
            Self::Item(number) => catalogue.label(*number),
            Self::Unknown(title) => title.clone(),
        }
    }
}

/// Looks up the items of a history. A text that is no title is looked up as an id, as codes, and then as a title in
/// another case. A title that the catalogue does not have is kept where the model can read it.
fn entries(history: &[String], catalogue: &Catalogue) -> Result<Vec<Entry>> {
    let lowered: HashSet<String> = history.iter().map(|title| title.to_lowercase()).collect();
    let (mut exact, mut other_case) = (HashMap::new(), HashMap::new());
    for (number, item) in (0..).zip(catalogue.items()) {
        let in_lower_case = item.title.to_lowercase();
        if lowered.contains(&in_lower_case) {
            exact.entry(item.title.as_str()).or_insert(number);
            other_case.insert(in_lower_case, number);
        }
        if let Some(codes) = catalogue
            .semantic_ids()
            .and_then(|codes| codes.text(number))
            && lowered.contains(&codes.to_lowercase())
        {
            other_case.entry(codes.to_lowercase()).or_insert(number);
        }
    }
    let entry = |text: &String| {
        if let Some(&number) = exact.get(text.as_str()) {
            return Ok(Entry::Item(number));
        }
        if let Some(number) = catalogue.number(text) {
            eprintln!(
                "no title is {text:?}, but an id is: that of {:?}",
                catalogue.label(number)
            );
            return Ok(Entry::Item(number));
        }
        match other_case.get(&text.to_lowercase()) {
            Some(&number) => Ok(Entry::Item(number)),
            None => {
                ensure!(
                    catalogue.semantic_ids().is_none(),
                    "{text:?} is not in the catalogue: expected a title, an item id or codes of its items, because the model \
                     reads codes, which other items do not have"
                );
                eprintln!("{text:?} is not in the catalogue; the model reads it as it is");
                Ok(Entry::Unknown(text.clone()))
            }
        }
    };
    history.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_that_the_catalogue_has_is_not_taken_for_one_in_another_case_nor_for_an_id() {
        let titles = ["SEA", "Sea", "sea", "The Wall", "300"];
        let ids = ["300", "007", "7", "The Wall", "5"];
        let items: Vec<(&str, &str)> = ids.into_iter().zip(titles).collect();
        let catalogue = Catalogue::of(&items).unwrap();
        let found = |history: &[&str]| -> Vec<String> {
            let history: Vec<String> = history.iter().map(|&text| text.to_owned()).collect();
            let entries = entries(&history, &catalogue).unwrap();
            entries
                .iter()
                .map(|entry| entry.label(&catalogue))
                .collect()
        };
        assert_eq!(found(&titles), titles);
        assert_eq!(
            found(&["the wall", "Unheard of", "7", "007"]),
            ["The Wall", "Unheard of", "sea", "Sea"]
        );
    }
}
