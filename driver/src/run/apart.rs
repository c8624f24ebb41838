//! Tells whether an output would replace what a command reads.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use same_file::is_same_file;

use crate::{
    data::files::{DATA_ENDINGS, TITLES_FILE},
    io::{entries, file_name, parent},
    model::pretrained::{CONFIG_FILE, TOKENIZER_FILE},
};

/// Fails where an output that is there already would take the place of something that is read: it is the same file or
/// folder, or one that holds it, by whatever name.
pub fn check_apart(option: &str, output: &Path, inputs: &[&Path]) -> Result<()> {
    if !output.exists() {
        return Ok(());
    }
    for input in inputs.iter().flat_map(|input| with_entries(input)) {
        // A link is followed: what it names would be gone.
        let Ok(real) = fs::canonicalize(&input) else {
            continue;
        };
        ensure!(
            !real.ancestors().any(|place| is_same(place, output)),
            "{option} {} would replace {}, which is read: name another",
            output.display(),
            input.display()
        );
    }
    Ok(())
}

/// Tells whether two paths are of one file or folder. Pipes and devices are never the same, because opening one may
/// wait.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let is_plain = |path| fs::metadata(path).is_ok_and(|there| there.is_file() || there.is_dir());
    is_plain(one) && is_plain(other) && is_same_file(one, other).unwrap_or(false)
}

/// Tells whether a path is that of a file in a folder, which need not exist yet.
pub fn is_place(path: &Path, folder: &Path, name: &str) -> bool {
    let by_name = path.file_name() == Some(name.as_ref()) && is_same(parent(path), folder);
    by_name || is_same(path, &folder.join(name))
}

/// Returns a path and, if it is that of a folder of data or of a model, the files that are read there.
fn with_entries(path: &Path) -> Vec<PathBuf> {
    let is_read = |path: &PathBuf| {
        let name = file_name(path);
        let ends = |ending: &str| name.ends_with(ending);
        DATA_ENDINGS.into_iter().any(ends)
            || [".safetensors", ".gguf"].into_iter().any(ends)
            || [TITLES_FILE, CONFIG_FILE, TOKENIZER_FILE].contains(&name.as_str())
            || ["train", "valid", "test"]
                .iter()
                .any(|part| name.starts_with(part))
                && ends(".csv")
    };
    let mut paths = vec![path.to_owned()];
    paths.extend(
        entries(path)
            .unwrap_or_default()
            .into_iter()
            .filter(is_read),
    );
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn an_output_is_told_from_the_inputs_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        fs::create_dir_all(at("project/data")).unwrap();
        fs::create_dir_all(at("elsewhere/blobs")).unwrap();
        fs::write(at("elsewhere/blobs/weights.safetensors"), "").unwrap();
        std::os::unix::fs::symlink(at("project"), at("link")).unwrap();
        let linked = at("project/data/model.safetensors");
        std::os::unix::fs::symlink(at("elsewhere/blobs/weights.safetensors"), linked).unwrap();
        let data = at("project/data");
        let check = |output: &str| check_apart("--output", &at(output), &[&data]);
        for output in [
            "project/data",
            "project/data/",
            "project",
            "link",
            "link/data",
            "project/data/../../link/",
            "elsewhere",
            "elsewhere/blobs/weights.safetensors",
        ] {
            assert!(check(output).is_err(), "{output}");
        }
        fs::create_dir(at("project/data/run")).unwrap();
        fs::create_dir(at("project/data2")).unwrap();
        fs::write(at("project/data/lists.jsonl"), "").unwrap();
        for output in [
            "project/data/run",
            "project/data/lists.jsonl",
            "project/data2",
            "nowhere",
        ] {
            check(output).unwrap();
        }
    }
}
