use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use candle_core::Device;
use serde::Serialize;

use super::opened_run::OpenedRun;
use crate::{
    commands::arguments::RecommendArguments,
    console::{print, print_json, shown, table},
    data::{catalogue::Catalogue, examples::warn_of_long_rows},
    evaluate::search::{SearchSettings, Searcher},
    run::folder::RunFolder,
};

#[derive(Serialize)]
struct Recommended<'a> {
    rank: usize,
    title: &'a str,
    items: Vec<&'a str>,
    probability: f64,
}

#[derive(Serialize)]
struct Report<'a> {
    command: &'static str,
    history: &'a [String],
    temperature: f64,
    recommended: Vec<Recommended<'a>>,
}

/// Runs `msl recommend`.
pub fn recommend(arguments: &RecommendArguments, device: &Device) -> Result<()> {
    let folder = arguments.moved.apply(RunFolder::open(&arguments.run)?)?;
    let run = OpenedRun::new(folder, arguments.checkpoint, &device.into())?;
    let catalogue = &run.dataset.catalogue;
    let history = known_titles(&arguments.history, catalogue);
    let prompt = &run.folder.settings().prompt;
    let prompt = prompt.text(history.iter().map(String::as_str));
    let prompt = run.checkpoint.tokenizer.encode_prompt(&prompt)?;
    let positions = run.checkpoint.model.config().max_position_embeddings;
    warn_of_long_rows([prompt.len()].into_iter(), positions);
    let numbered = (0..).zip(catalogue.items());
    let seen = numbered.filter(|(_, item)| arguments.unseen && history.contains(&item.title));
    let excluded: Vec<u64> = seen.map(|(number, _)| number).collect();
    let temperature = run.temperature(arguments.temperature);
    let search = SearchSettings {
        search: arguments.search,
        beams: arguments.beams.unwrap_or(0).max(arguments.top),
        ..SearchSettings::default()
    };
    let searcher = Searcher::new(
        run.responses.trie(),
        &run.checkpoint.model,
        search,
        temperature,
    )?;
    let found = (searcher.recommend(&[&prompt], &[excluded]))
        .with_context(|| arguments.run.display().to_string())?
        .found;
    let titled = found.iter().flatten().filter_map(|found| {
        let first = catalogue.item(*found.items.first()?)?;
        Some((first.title.as_str(), found))
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
                items: catalogue.ids(&found.items).collect(),
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
            shown(line.title),
            format!("{:.4}", line.probability),
            line.rank.to_string(),
        ]);
    }
    print(&table)
}

/// Returns titles as the catalogue writes them. A text that is no title is looked up as an id, and then in another
/// case. A title that the catalogue does not have is kept.
fn known_titles(history: &[String], catalogue: &Catalogue) -> Vec<String> {
    let lowered: HashSet<String> = history.iter().map(|title| title.to_lowercase()).collect();
    let (mut exact, mut other_case) = (HashSet::new(), HashMap::new());
    for item in catalogue.items() {
        let title = item.title.as_str();
        let in_lower_case = title.to_lowercase();
        if lowered.contains(&in_lower_case) {
            exact.insert(title);
            other_case.insert(in_lower_case, title);
        }
    }
    let by_id = |id: &str| catalogue.item(catalogue.number(id)?);
    let known = |title: &String| {
        if exact.contains(title.as_str()) {
            return title.clone();
        }
        if let Some(item) = by_id(title) {
            eprintln!(
                "no title is {title:?}, but an id is: that of {:?}",
                item.title
            );
            return item.title.clone();
        }
        match other_case.get(&title.to_lowercase()) {
            Some(&known) => known.to_owned(),
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
    fn a_title_that_the_catalogue_has_is_not_taken_for_one_in_another_case_nor_for_an_id() {
        let titles = ["SEA", "Sea", "sea", "The Wall", "300"];
        let ids = ["300", "007", "7", "The Wall", "5"];
        let items: Vec<(&str, &str)> = ids.into_iter().zip(titles).collect();
        let catalogue = Catalogue::of(&items).unwrap();
        let history = titles.map(str::to_owned);
        assert_eq!(known_titles(&history, &catalogue), history);
        let other = ["the wall", "Unheard of", "7", "007"].map(str::to_owned);
        assert_eq!(
            known_titles(&other, &catalogue),
            ["The Wall", "Unheard of", "sea", "Sea"]
        );
    }
}
