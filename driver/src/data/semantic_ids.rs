//! Holds semantic IDs: a short path of codes for each item, such as `<a_12><b_7><c_201>`, as a quantizer of embeddings
//! makes it. LC-Rec, MiniOneRec, APAO and others share them as `NAME.index.json`.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    data::{
        catalogue::Catalogue,
        table::{Layout, Table},
        tokenizer::TextTokenizer,
    },
    io::json::read_object,
};

/// How many items an error names.
const EXAMPLES: usize = 3;
/// How many paths, spread over the catalogue, are read as texts to see whether the tokenizer tells their codes apart.
const COMPARED_PATHS: usize = 1_024;

/// The semantic IDs of items: a path of codes for each, all of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SemanticIds {
    /// The different codes, in the order in which they first come up.
    codes: Vec<String>,
    /// Number of codes of each item.
    length: usize,
    /// The places in `codes` of each item's path, item by item.
    paths: Vec<u32>,
}

/// The file `NAME.index.json`: one object from item ids to lists of codes.
pub struct SemanticIndex {
    /// The ids of the items, in the order of the file.
    pub ids: Vec<String>,
    semantic_ids: SemanticIds,
}

impl SemanticIndex {
    /// Reads an index. All its paths have one length, so that none is the beginning of another.
    pub fn read(path: &Path) -> Result<Self> {
        let mut index = Codes::default();
        let mut ids = Vec::new();
        let expected = r#"one JSON object from item ids to lists of codes, such as {"1": ["<a_12>", "<b_7>"]}"#;
        read_object(path, expected, |id: String, codes: Value| {
            let place = || format!("{}, item {id:?}", path.display());
            index.add(&codes).with_context(place)?;
            ids.push(id);
            Ok(())
        })?;
        ensure!(
            !ids.is_empty(),
            "{}: expected items with codes, found none",
            path.display()
        );
        let place = || path.display().to_string();
        let semantic_ids = index.finish(&ids).with_context(place)?;
        Ok(Self { ids, semantic_ids })
    }

    /// Reads the codes of items from the columns of a table.
    pub fn read_table(path: &Path, id_column: &str, codes_column: &str) -> Result<Self> {
        let mut table = Table::open(path, Layout::of(path)?)?;
        let (id, codes) = (table.column(id_column)?, table.column(codes_column)?);
        let mut index = Codes::default();
        let mut ids = Vec::new();
        while table.next_row()?.is_some() {
            let text = table.field(codes);
            let list = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            let place = || format!("{}, column {codes_column}", table.place());
            index.add(&list).with_context(place)?;
            ids.push(table.field(id).to_owned());
        }
        let semantic_ids = index
            .finish(&ids)
            .with_context(|| path.display().to_string())?;
        Ok(Self { ids, semantic_ids })
    }

    /// Returns the codes of the items of a catalogue, in the order of their numbers. An item without codes is an error.
    pub fn of_catalogue(self, catalogue: &Catalogue) -> Result<SemanticIds> {
        let mut places: HashMap<&str, usize> = HashMap::with_capacity(self.ids.len());
        for (place, id) in self.ids.iter().enumerate() {
            ensure!(
                places.insert(id, place).is_none(),
                "expected codes once for each item, found them twice for item {id:?}"
            );
        }
        let items = catalogue.items();
        let missing: Vec<String> = (items.iter())
            .filter(|item| !places.contains_key(item.id.as_str()))
            .map(|item| format!("{:?} ({:?})", item.id, item.title))
            .collect();
        ensure!(
            missing.is_empty(),
            "expected codes for each of the {} items of the catalogue, found none for {}: {}. Make the index anew from \
             these items, or take --identifier title",
            items.len(),
            missing.len(),
            first_of(&missing)
        );
        let all = &self.semantic_ids;
        let paths = items.iter().map(|item| all.path(places[item.id.as_str()]));
        Ok(SemanticIds {
            paths: paths.flatten().flatten().copied().collect(),
            ..self.semantic_ids
        })
    }
}

impl SemanticIds {
    /// Returns the different codes.
    pub fn codes(&self) -> &[String] {
        &self.codes
    }

    /// Returns the places among the codes of an item's path; `None` where there is no such item.
    pub fn path(&self, item: usize) -> Option<&[u32]> {
        let first = item.checked_mul(self.length)?;
        self.paths.get(first..first.checked_add(self.length)?)
    }

    /// Returns the codes of an item one after another, as they stand in texts.
    pub fn text(&self, item: u64) -> Option<String> {
        let path = self.path(usize::try_from(item).ok()?)?;
        Some(
            path.iter()
                .map(|&code| self.codes[code as usize].as_str())
                .collect(),
        )
    }

    /// Returns the token of each code. A code that is not one token, or that the tokenizer does not tell from another, is
    /// an error.
    pub fn tokens(&self, tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
        let missing: Vec<String> = (self.codes.iter())
            .filter(|code| tokenizer.token(code).is_none())
            .map(|code| format!("{code:?}"))
            .collect();
        ensure!(
            missing.is_empty(),
            "the tokenizer has no token for {} of the {} codes: {}. Give a tokenizer to which \
             they were added, as msl train does; or take --identifier title",
            missing.len(),
            self.codes.len(),
            first_of(&missing)
        );
        let tokens: Vec<u32> = (self.codes.iter())
            .filter_map(|code| tokenizer.token(code))
            .collect();
        for (code, &token) in self.codes.iter().zip(&tokens) {
            let read = tokenizer.encode(code)?;
            if read == [token] {
                continue;
            }
            let same = tokens.iter().position(|&other| read == [other]);
            match same {
                Some(other) => bail!(
                    "the tokenizer reads the codes {code:?} and {:?} as one token: give them names that it tells apart",
                    self.codes[other]
                ),
                None => bail!(
                    "the tokenizer reads the code {code:?} as {} tokens, expected one",
                    read.len()
                ),
            }
        }
        let items = self.paths.len() / self.length.max(1);
        for item in (0..items).step_by(items.div_ceil(COMPARED_PATHS).max(1)) {
            let expected = self.path(item).unwrap_or_default().iter();
            let expected: Vec<u32> = expected.map(|&code| tokens[code as usize]).collect();
            let text = self.text(item as u64).unwrap_or_default();
            ensure!(
                tokenizer.encode(&text)? == expected,
                "the tokenizer does not read {text:?} as the {} codes that it is made of: give the codes names that it \
                 tells apart where they stand side by side, such as <a_12>",
                self.length
            );
        }
        Ok(tokens)
    }
}

/// The paths of an index while it is read, when their lengths may differ.
#[derive(Default)]
struct Codes {
    places: HashMap<String, u32>,
    codes: Vec<String>,
    paths: Vec<u32>,
    /// The end of each path in `paths`.
    ends: Vec<usize>,
}

impl Codes {
    /// Adds the path of one item: a list of codes, or one text of codes in angle brackets, as `semantic-id` writes it.
    fn add(&mut self, codes: &Value) -> Result<()> {
        let found =
            || format!("expected a list of codes such as [\"<a_12>\", \"<b_7>\"], found {codes}");
        match codes {
            Value::Array(codes) => {
                for code in codes {
                    self.push(code.as_str().with_context(found)?)?;
                }
            }
            Value::String(text) if text.starts_with('<') && text.ends_with('>') => {
                for code in text.split_inclusive('>') {
                    self.push(code)?;
                }
            }
            _ => bail!(found()),
        }
        let begin = self.ends.last().copied().unwrap_or(0);
        ensure!(
            self.paths.len() > begin,
            "expected at least one code, found an empty list"
        );
        self.ends.push(self.paths.len());
        Ok(())
    }

    fn push(&mut self, code: &str) -> Result<()> {
        ensure!(
            !code.is_empty(),
            "expected codes, found an empty text among them"
        );
        let next = self.codes.len() as u32;
        let place = *self.places.entry(code.to_owned()).or_insert(next);
        if place == next {
            self.codes.push(code.to_owned());
        }
        self.paths.push(place);
        Ok(())
    }

    fn path(&self, item: usize) -> &[u32] {
        let begin = item.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.paths[begin..self.ends[item]]
    }

    /// Checks that all paths have one length.
    fn finish(self, ids: &[String]) -> Result<SemanticIds> {
        let mut items_of_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for item in 0..self.ends.len() {
            items_of_length
                .entry(self.path(item).len())
                .or_default()
                .push(item);
        }
        let named = |item: usize| {
            let codes = self
                .path(item)
                .iter()
                .map(|&code| self.codes[code as usize].as_str());
            format!("{:?} ({})", ids[item], codes.collect::<String>())
        };
        if let [(&length, _)] = items_of_length.iter().collect::<Vec<_>>()[..] {
            return Ok(SemanticIds {
                codes: self.codes,
                length,
                paths: self.paths,
            });
        }
        let whole: HashMap<&[u32], usize> =
            (0..ids.len()).map(|item| (self.path(item), item)).collect();
        for item in 0..ids.len() {
            let path = self.path(item);
            let mut beginnings = (1..path.len()).filter_map(|length| whole.get(&path[..length]));
            if let Some(&other) = beginnings.next_back() {
                bail!(
                    "the codes of item {} are the beginning of those of item {}: give all items as many codes",
                    named(other),
                    named(item)
                );
            }
        }
        let lengths: Vec<String> = (items_of_length.iter())
            .map(|(length, items)| {
                format!(
                    "{length} for {} items such as {}",
                    items.len(),
                    named(items[0])
                )
            })
            .collect();
        bail!(
            "expected as many codes for each item, found {}",
            lengths.join(", ")
        )
    }
}

/// Returns the first examples of what an error counts.
fn first_of(examples: &[String]) -> String {
    let more = examples.len().saturating_sub(EXAMPLES);
    let shown = examples[..examples.len() - more].join(", ");
    match more {
        0 => shown,
        _ => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
