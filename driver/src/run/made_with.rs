//! Hashes what a run was made with, so that changed data and models are recognised.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use blake3::Hasher;
use serde::{Deserialize, Serialize};

use crate::{
    data::{catalogue::Catalogue, examples::Example},
    io::{entries, parent},
    model::pretrained::{CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE, WEIGHTS_FILE, weight_map},
};

/// The BLAKE3 hashes of what a run was made with, over all bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeWith {
    /// Hash of the ids, titles and codes of the catalogue.
    pub titles: String,
    /// Hash of the training and validation rows, in tokens.
    pub rows: String,
    /// Hash of the file of the tokenizer in the checkpoints.
    pub tokenizer: String,
    /// Hash of the file of the trie; runs of earlier versions do not have it.
    #[serde(default)]
    pub trie: Option<String>,
    /// Hash of the files of weights and the `config.json` of the pretrained model, if there is one.
    pub weights: Option<String>,
}

/// Returns the hash of a catalogue's ids and titles, and of the codes that identify its items.
pub fn hash_titles(catalogue: &Catalogue) -> String {
    let mut hasher = Hasher::new();
    for (number, item) in (0..).zip(catalogue.items()) {
        add(&mut hasher, item.id.to_string().as_bytes());
        add(&mut hasher, item.title.as_bytes());
        if let Some(codes) = catalogue
            .semantic_ids()
            .and_then(|codes| codes.text(number))
        {
            add(&mut hasher, codes.as_bytes());
        }
    }
    hex(&hasher)
}

/// Returns the hash of the rows of a training.
pub fn hash_rows(training: &[Example], validation: &[Example]) -> String {
    let mut hasher = Hasher::new();
    for rows in [training, validation] {
        add(&mut hasher, &rows.len().to_le_bytes());
        for tokens in rows.iter().flat_map(|row| [&row.prompt, &row.response]) {
            let bytes: Vec<u8> = tokens
                .iter()
                .flat_map(|token| token.to_le_bytes())
                .collect();
            add(&mut hasher, &bytes);
        }
    }
    hex(&hasher)
}

/// Returns the hash of the tokenizer of a checkpoint's folder.
pub fn hash_tokenizer(checkpoint: &Path) -> Result<String> {
    hash_file(&checkpoint.join(TOKENIZER_FILE))
}

/// Returns the hash of a pretrained model: the files of its weights, whatever their names, and its configuration. It
/// reads all of them, on all processors.
pub fn hash_model(model: &Path) -> Result<String> {
    let mut hasher = Hasher::new();
    for file in model_files(model)? {
        add(&mut hasher, hash_file(&file)?.as_bytes());
    }
    Ok(hex(&hasher))
}

/// Returns the files that decide what a model computes.
fn model_files(model: &Path) -> Result<Vec<PathBuf>> {
    if !model.is_dir() {
        return gguf_files(model);
    }
    let (index, single) = (model.join(INDEX_FILE), model.join(WEIGHTS_FILE));
    // In the order in which the model itself is looked for.
    let mut files: Vec<PathBuf> = if single.exists() {
        vec![single]
    } else if index.exists() {
        let names: BTreeSet<String> = weight_map(&index)?.into_values().collect();
        names.iter().map(|name| model.join(name)).collect()
    } else {
        let mut files = entries(model)?;
        files.retain(|file| file.extension().is_some_and(|ending| ending == "gguf"));
        files.sort();
        files
    };
    let config = model.join(CONFIG_FILE);
    files.extend(config.exists().then_some(config));
    Ok(files)
}

/// Returns a GGUF file, with the others if its model is split into files such as `NAME-00001-of-00003.gguf`.
fn gguf_files(file: &Path) -> Result<Vec<PathBuf>> {
    let parts = |path: &Path| -> Option<(String, String)> {
        let (rest, count) = path.file_name()?.to_str()?.rsplit_once("-of-")?;
        Some((rest.rsplit_once('-')?.0.to_owned(), count.to_owned()))
    };
    let Some(own) = parts(file) else {
        return Ok(vec![file.to_owned()]);
    };
    let mut files = entries(parent(file))?;
    files.retain(|other| parts(other).as_ref() == Some(&own));
    files.sort();
    Ok(files)
}

/// Returns the hash of a file.
pub fn hash_file(path: &Path) -> Result<String> {
    ensure!(path.is_file(), "{} is not a regular file", path.display());
    let mut hasher = Hasher::new();
    (hasher.update_mmap_rayon(path)).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher))
}

/// Adds bytes after their number, so that no two sequences of them have the same hash.
fn add(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn hex(hasher: &Hasher) -> String {
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn rows_are_told_apart_wherever_they_end() {
        let row = |prompt: &[u32], response: &[u32]| Example {
            prompt: prompt.to_vec(),
            response: response.to_vec(),
            chosen: 1,
            target: 0,
        };
        let (a, b) = (row(&[1, 2], &[3]), row(&[1], &[2, 3]));
        let hash = hash_rows(std::slice::from_ref(&a), &[]);
        assert_eq!(hash, hash_rows(std::slice::from_ref(&a), &[]));
        for (training, validation) in [
            (vec![b.clone()], vec![]),
            (vec![], vec![a.clone()]),
            (vec![a.clone(), b], vec![]),
        ] {
            assert_ne!(hash, hash_rows(&training, &validation));
        }
    }

    #[test]
    fn a_model_is_known_by_the_contents_of_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, content: &str| fs::write(at(name), content).unwrap();
        write("model.safetensors", "weights");
        write("config.json", "{}");
        let whole = hash_model(folder.path()).unwrap();
        write("notes.txt", "of no matter");
        assert_eq!(hash_model(folder.path()).unwrap(), whole);
        write("config.json", "{\"rope_theta\": 1}");
        assert_ne!(hash_model(folder.path()).unwrap(), whole);
        write("config.json", "{}");
        // An index beside the one file is not read, and what it names need not be there.
        let index = "model.safetensors.index.json";
        write(index, r#"{"weight_map": {"a": "part.safetensors"}}"#);
        assert_eq!(hash_model(folder.path()).unwrap(), whole);
        fs::remove_file(at(index)).unwrap();
        write("model.safetensors", "Weights");
        assert_ne!(hash_model(folder.path()).unwrap(), whole);

        write("a-00001-of-00002.gguf", "1");
        write("a-00002-of-00002.gguf", "2");
        let split = || hash_model(&at("a-00001-of-00002.gguf")).unwrap();
        let before = split();
        write("a-00002-of-00002.gguf", "3");
        assert_ne!(split(), before);
        fs::copy(at("model.safetensors"), at("one.gguf")).unwrap();
        fs::copy(at("model.safetensors"), at("two.gguf")).unwrap();
        let [one, two] = ["one.gguf", "two.gguf"].map(|name| hash_model(&at(name)).unwrap());
        assert_eq!(one, two);
    }
}
