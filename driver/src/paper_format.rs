//! The files of the paper: `id2name4Rec.json`, `train*.csv` and `test.csv`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::catalogue::{Catalogue, Interaction, Item};

/// The file that names the items.
pub const TITLES_FILE: &str = "id2name4Rec.json";
/// The file of test rows.
pub const TEST_FILE: &str = "test.csv";

#[derive(Deserialize)]
struct Record {
    user_id: String,
    item_ids: String,
}

/// Reads `id2name4Rec.json` of a folder: one object from item ids to titles.
pub fn read_catalogue(folder: &Path) -> Result<Catalogue> {
    let path = folder.join(TITLES_FILE);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let titles: BTreeMap<u64, String> = serde_json::from_str(&text).map_err(|error| {
        anyhow!(
            "{}, line {}: {error}; expected one JSON object from item ids to titles, such as {{\"1\": \"Emma\"}}",
            path.display(),
            error.line()
        )
    })?;
    let items = titles
        .into_iter()
        .map(|(id, title)| Item { id, title })
        .collect();
    Catalogue::new(items).with_context(|| path.display().to_string())
}

/// Reads rows of a CSV file with the columns `user_id`, `item_ids` (a JSON list: the history, then the target) and
/// `timestamp`. Every item must have a title.
pub fn read_interactions(path: &Path, catalogue: &Catalogue) -> Result<Vec<Interaction>> {
    let mut reader =
        csv::Reader::from_path(path).with_context(|| format!("cannot read {}", path.display()))?;
    let headers = reader
        .headers()
        .with_context(|| path.display().to_string())?
        .clone();
    let has = |name| headers.iter().any(|column| column == name);
    if !(has("user_id") && has("item_ids")) {
        bail!(
            "{}, line 1: expected the columns user_id, item_ids, timestamp, found {}",
            path.display(),
            headers.iter().collect::<Vec<_>>().join(", ")
        );
    }
    let mut interactions = Vec::new();
    let mut record = csv::StringRecord::new();
    while reader
        .read_record(&mut record)
        .with_context(|| format!("{}: expected user_id, item_ids, timestamp", path.display()))?
    {
        let line = record.position().map_or(0, csv::Position::line);
        let interaction = record
            .deserialize::<Record>(Some(&headers))
            .map_err(anyhow::Error::from)
            .and_then(|record| parse_interaction(record, catalogue))
            .with_context(|| format!("{}, line {line}", path.display()))?;
        interactions.push(interaction);
    }
    if interactions.is_empty() {
        bail!(
            "{}: expected at least one row after the header",
            path.display()
        );
    }
    Ok(interactions)
}

fn parse_interaction(record: Record, catalogue: &Catalogue) -> Result<Interaction> {
    let Record { user_id, item_ids } = record;
    let mut history: Vec<u64> = serde_json::from_str(&item_ids)
        .map_err(|error| anyhow!("expected item_ids to be a list of item ids such as \"[3, 17]\", found {item_ids:?} ({error})"))?;
    if let Some(unknown) = history.iter().find(|&&id| catalogue.title(id).is_none()) {
        bail!("item {unknown} has no title in {TITLES_FILE}");
    }
    match history.pop() {
        Some(target) if !history.is_empty() => Ok(Interaction {
            user: user_id,
            history,
            target,
        }),
        _ => bail!("expected at least two item ids, a history and the target, found {item_ids:?}"),
    }
}

/// The only `train*.csv` of a folder, or the largest.
pub fn find_training_file(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut largest: Option<(u64, PathBuf)> = None;
    for entry in entries {
        let entry =
            entry.with_context(|| format!("cannot read the folder {}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !(name.starts_with("train") && name.ends_with(".csv")) {
            continue;
        }
        let candidate = (entry.metadata()?.len(), entry.path());
        if largest.as_ref().is_none_or(|found| *found < candidate) {
            largest = Some(candidate);
        }
    }
    match largest {
        Some((_, path)) => Ok(path),
        None => bail!("{}: expected a file train*.csv", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn message(csv: &str) -> String {
        let folder = folder(&[(TITLES_FILE, r#"{"1": "A", "2": "B"}"#), ("train.csv", csv)]);
        let catalogue = read_catalogue(folder.path()).unwrap();
        let error = read_interactions(&folder.path().join("train.csv"), &catalogue).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn rows_are_read() {
        let folder = folder(&[
            (TITLES_FILE, r#"{"1": "A", "2": "B"}"#),
            (
                "train.csv",
                "user_id,item_ids,timestamp\n7,\"[1, 1, 2]\",99\n",
            ),
        ]);
        let catalogue = read_catalogue(folder.path()).unwrap();
        let interactions = read_interactions(&folder.path().join("train.csv"), &catalogue).unwrap();
        assert_eq!(
            interactions,
            [Interaction {
                user: "7".into(),
                history: vec![1, 1],
                target: 2
            }]
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_line() {
        let header = "user_id,item_ids,timestamp\n";
        let unknown = message(&format!("{header}7,\"[1, 2]\",99\n8,\"[1, 3]\",99\n"));
        assert!(
            unknown.contains("train.csv, line 3") && unknown.contains("item 3 has no title"),
            "{unknown}"
        );
        let broken = message(&format!("{header}7,\"[1, x]\",99\n"));
        assert!(
            broken.contains("line 2") && broken.contains("expected item_ids"),
            "{broken}"
        );
        let short = message(&format!("{header}7,\"[1]\",99\n"));
        assert!(short.contains("at least two item ids"), "{short}");
        let columns = message("user,items\n1,2\n");
        assert!(
            columns.contains("line 1") && columns.contains("user, items"),
            "{columns}"
        );
        let fields = message(&format!("{header}7,\"[1, 2]\",99,5\n"));
        assert!(
            fields.contains("line 2") || fields.contains("line: 2"),
            "{fields}"
        );
        assert!(message(header).contains("at least one row"));
    }

    #[test]
    fn malformed_titles_name_the_line() {
        let folder = folder(&[(TITLES_FILE, "{\"1\": \"A\",\n \"x\": \"B\"}")]);
        let text = format!("{:#}", read_catalogue(folder.path()).unwrap_err());
        assert!(
            text.contains("id2name4Rec.json, line 2") && text.contains("expected one JSON object"),
            "{text}"
        );
    }
}
