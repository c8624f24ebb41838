//! Lists what msl writes into the folders of runs and merged models, so that it never replaces anything else.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    evaluate::{comparison::EVALUATION_FILE, earlier::is_numbered, ranks::RANKS_FILE},
    io::{entries, file_name, named, output::PARTIAL},
    model::{
        adapter,
        pretrained::{CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE},
    },
    run::checkpoint::{MOMENTS_FILE, STATE_FILE},
    train::{events::EVENTS_FILE, metrics::METRICS_FILE},
};

/// The file of a run's settings.
pub const SETTINGS_FILE: &str = "training.json";
/// The file of the hashes of what a run was made with.
pub const MADE_WITH_FILE: &str = "made_with.json";
/// The file of the trie of a run's catalogue.
pub const TRIE_FILE: &str = "trie.safetensors";
/// The file that the process which trains a run has locked.
pub const LOCK_FILE: &str = "lock";
/// The name of a checkpoint's folder, before the number of its step.
pub const CHECKPOINT: &str = "checkpoint-";
/// The file of what a model was merged from. Only `msl merge` writes it.
pub const MERGED_FILE: &str = "merged.json";

/// Stands in the name of what is being replaced, before random letters.
pub const REPLACED: &str = ".replaced-";
/// The name of a replaced folder until it is deleted.
pub const KEPT: &str = "run";

/// The files that training writes.
const RUN_FILES: [&str; 6] = [
    SETTINGS_FILE,
    MADE_WITH_FILE,
    TRIE_FILE,
    LOCK_FILE,
    METRICS_FILE,
    EVENTS_FILE,
];

/// Returns the step of a checkpoint, by the name of its folder.
pub fn checkpoint_step(name: &str) -> Option<usize> {
    name.strip_prefix(CHECKPOINT)?.parse().ok()
}

/// Tells whether a name in a run's folder is of something that was left half written.
pub fn is_left_over(name: &str) -> bool {
    is_unfinished(name, is_written)
}

/// Tells whether a name is of something that is being written or replaced, whose final name `is_ours` knows.
fn is_unfinished(name: &str, is_ours: fn(&str) -> bool) -> bool {
    [PARTIAL, REPLACED].iter().any(|mark| {
        name.split_once(mark)
            .is_some_and(|(finished, _)| is_ours(finished))
    })
}

/// Tells whether a name is of a file or folder of a run that `msl train` and `msl resume` write.
pub fn is_trained(name: &str) -> bool {
    RUN_FILES.contains(&name) || checkpoint_step(name).is_some()
}

/// Tells whether a name is of something in a run that training or an evaluation writes.
fn is_written(name: &str) -> bool {
    let evaluated = |file| name == file || is_numbered(name, file);
    is_trained(name) || evaluated(EVALUATION_FILE) || evaluated(RANKS_FILE)
}

fn is_of_run(name: &str) -> bool {
    // Runs of earlier versions have left such beside their files.
    let hidden = name.strip_prefix('.').is_some_and(is_trained);
    is_written(name)
        || is_left_over(name)
        || hidden
        // As the library calls it while it is written.
        || name.strip_suffix(".partial") == Some(TRIE_FILE)
}

fn is_of_checkpoint(name: &str) -> bool {
    let files = [
        CONFIG_FILE,
        TOKENIZER_FILE,
        WEIGHTS_FILE,
        MOMENTS_FILE,
        STATE_FILE,
        adapter::CONFIG_FILE,
        adapter::WEIGHTS_FILE,
        KEPT,
    ];
    files.contains(&name)
}

/// Tells whether a name is of a folder in a run: of a checkpoint, also while it is written or replaced.
fn is_folder_of_run(name: &str) -> bool {
    let is_checkpoint = |name: &str| checkpoint_step(name).is_some();
    is_checkpoint(name.trim_start_matches('.'))
        || is_unfinished(name, is_checkpoint)
        || name == KEPT
}

fn is_of_merged_model(name: &str) -> bool {
    let files = [
        MERGED_FILE,
        CONFIG_FILE,
        TOKENIZER_FILE,
        WEIGHTS_FILE,
        LOCK_FILE,
    ];
    files.contains(&name)
}

/// Returns the paths in a run's folder that are of the run.
pub fn run_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = entries(folder)?;
    paths.retain(|path| is_of_run(&file_name(path)));
    Ok(paths)
}

/// Kinds of folder that may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The folder of a run, finished or not.
    Run,
    /// The folder of a merged model.
    MergedModel,
    /// An empty folder.
    Empty,
}

/// Returns the kind of a folder. One that holds something that msl did not write is an error.
pub fn replaceable(folder: &Path) -> Result<Kind> {
    let names = names(folder)?;
    let has_checkpoint = names.iter().any(|name| checkpoint_step(name).is_some());
    let kind = match () {
        () if names.is_empty() => return Ok(Kind::Empty),
        () if names.contains(SETTINGS_FILE) && names.contains(TRIE_FILE) && has_checkpoint => {
            Kind::Run
        }
        () if names.contains(MERGED_FILE) => Kind::MergedModel,
        () => bail!(
            "{} is neither the folder of a run nor that of a merged model, and --overwrite replaces nothing else: name \
             another --output",
            folder.display()
        ),
    };
    let is_ours = match kind {
        Kind::Run => is_of_run,
        _ => is_of_merged_model,
    };
    if let Some(foreign) = foreign(folder, is_ours)? {
        bail!(
            "{} holds {:?}, which msl did not write and --overwrite would delete: move it elsewhere, or name another \
             --output",
            folder.display(),
            foreign.strip_prefix(folder).unwrap_or(&foreign)
        );
    }
    check_contained(folder)?;
    Ok(kind)
}

/// Tells whether a folder that was being written or replaced holds only what msl writes.
pub fn is_part_of_ours(folder: &Path) -> bool {
    let all = |is_ours| matches!(foreign(folder, is_ours), Ok(None));
    all(is_of_run) || all(is_of_merged_model)
}

/// Returns something in a folder, or in its folders of checkpoints, that msl does not write there. `is_ours` knows the
/// names.
fn foreign(folder: &Path, is_ours: fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for path in entries(folder)? {
        let name = file_name(&path);
        let is_folder = path.is_dir() && !path.is_symlink();
        if !is_ours(&name) || is_folder && !is_folder_of_run(&name) {
            return Ok(Some(path));
        }
        if is_folder && let Some(foreign) = foreign(&path, is_of_checkpoint)? {
            return Ok(Some(foreign));
        }
    }
    Ok(None)
}

/// Fails where something in a run's folder is neither a regular file nor a folder: a link would lead out of it, and a
/// pipe or a device is no file.
pub fn check_contained(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        let kind = match fs::symlink_metadata(&path) {
            Ok(there) => there.file_type(),
            // Another evaluation of the run has just finished the file, or a training a checkpoint.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        if kind.is_dir() {
            check_contained(&path)?;
            continue;
        }
        ensure!(
            kind.is_file(),
            "{} is {}, and a run is read and written within its folder alone: put the file itself in its place, or \
             remove it",
            path.display(),
            named(kind)
        );
    }
    Ok(())
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let paths = entries(folder)?;
    Ok(paths.iter().map(|path| file_name(path)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_msl_wrote_may_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let write = |name: &str| fs::write(folder.join(name), "").unwrap();
        assert_eq!(replaceable(folder).unwrap(), Kind::Empty);
        write(SETTINGS_FILE);
        let refusal = |expected: &str| {
            let refusal = replaceable(folder).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{refusal}");
        };
        // Somebody else's training.json.
        refusal("neither the folder of a run");
        write(TRIE_FILE);
        refusal("neither the folder of a run");
        fs::create_dir(folder.join("checkpoint-5")).unwrap();
        for name in [
            "lock",
            "ranks.csv",
            "evaluation-3.json",
            "checkpoint-7.partial-Ab3",
        ] {
            write(name);
        }
        assert_eq!(replaceable(folder).unwrap(), Kind::Run);
        for foreign in ["notes.txt", "my.partial-work", "checkpoint-5/notes.txt"] {
            write(foreign);
            refusal(&format!("{foreign:?}"));
            fs::remove_file(folder.join(foreign)).unwrap();
        }
        fs::create_dir(folder.join("evaluation.json")).unwrap();
        refusal("\"evaluation.json\"");
    }
}
