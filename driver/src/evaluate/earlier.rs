//! Keeps earlier evaluations of a run that were decoded otherwise, under numbered names.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{
    evaluate::{
        comparison::{Comparison, EVALUATION_FILE},
        decoding::Decoding,
        ranks::RANKS_FILE,
    },
    io::json::read_json,
};

/// Keeps the evaluation that is in a run's folder, and its ranks, under the next free number, unless the one that takes
/// their place was decoded in the same way.
pub fn keep_earlier(run: &Path, decoding: &Decoding) -> Result<()> {
    let files = [EVALUATION_FILE, RANKS_FILE];
    let earlier = read_json::<Comparison>(&run.join(EVALUATION_FILE));
    let is_same = earlier.is_ok_and(|earlier| earlier.decoding.as_ref() == Some(decoding));
    if is_same || !files.iter().any(|file| run.join(file).exists()) {
        return Ok(());
    }
    let taken = |number: &usize| {
        files
            .iter()
            .any(|file| run.join(numbered(file, *number)).exists())
    };
    let number = (1..).find(|number| !taken(number)).unwrap_or(usize::MAX);
    for file in files {
        let (from, to) = (run.join(file), run.join(numbered(file, number)));
        if from.exists() {
            std::fs::rename(&from, &to)
                .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
        }
    }
    eprintln!(
        "the earlier evaluation of {}, which was decoded in another way, is kept: {} and {}",
        run.display(),
        numbered(EVALUATION_FILE, number),
        numbered(RANKS_FILE, number)
    );
    Ok(())
}

/// Returns the name of a run's file for an evaluation that a later one has taken the place of: `ranks-2.csv`.
fn numbered(file: &str, number: usize) -> String {
    let (stem, extension) = file.split_once('.').unwrap_or((file, ""));
    format!("{stem}-{number}.{extension}")
}

/// Tells whether a name is one that `numbered` gives for a file.
pub fn is_numbered(name: &str, file: &str) -> bool {
    let (stem, extension) = file.split_once('.').unwrap_or((file, ""));
    let number = name
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_prefix('-')?.strip_suffix(extension))
        .and_then(|rest| rest.strip_suffix('.'));
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        evaluate::search::SearchSettings, io::json::write_json, model::precision::Precision,
    };

    #[test]
    fn an_evaluation_takes_the_place_of_one_that_was_decoded_alike_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let decoding = |temperature| Decoding {
            step: 3,
            search: SearchSettings::default(),
            temperature,
            dtype: Precision::F32,
            data: "data".into(),
            rows: "test".into(),
            samples: None,
        };
        let evaluate = |temperature: f64| {
            keep_earlier(folder.path(), &decoding(temperature)).unwrap();
            let comparison = Comparison {
                command: "evaluate".into(),
                seed: 1,
                users: 2,
                evaluated_on: None,
                targets: Default::default(),
                decoding: Some(decoding(temperature)),
                rows: Vec::new(),
                notes: Vec::new(),
            };
            write_json(&at(EVALUATION_FILE), &comparison).unwrap();
            fs::write(at(RANKS_FILE), temperature.to_string()).unwrap();
        };
        let ranks = |name: &str| fs::read_to_string(at(name)).ok();
        evaluate(1.0);
        evaluate(1.0);
        assert_eq!(ranks("ranks-1.csv"), None);
        evaluate(2.0);
        evaluate(3.0);
        assert_eq!(ranks("ranks-1.csv").as_deref(), Some("1"));
        assert_eq!(ranks("ranks-2.csv").as_deref(), Some("2"));
        assert_eq!(ranks(RANKS_FILE).as_deref(), Some("3"));
        let first: Comparison = read_json(&at("evaluation-1.json")).unwrap();
        assert_eq!(first.decoding, Some(decoding(1.0)));
        // One that cannot be read, or of an earlier version, is kept too.
        fs::write(at(EVALUATION_FILE), "{").unwrap();
        evaluate(3.0);
        assert_eq!(ranks("evaluation-3.json").as_deref(), Some("{"));
    }

    #[test]
    fn evaluations_that_were_replaced_have_numbers() {
        assert_eq!(numbered(RANKS_FILE, 2), "ranks-2.csv");
        assert!(is_numbered("ranks-2.csv", RANKS_FILE));
        for other in [
            "ranks.csv",
            "ranks-.csv",
            "ranks-a.csv",
            "ranks-2.csv.old",
            "my-ranks-2.csv",
        ] {
            assert!(!is_numbered(other, RANKS_FILE), "{other}");
        }
    }
}
