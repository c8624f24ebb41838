//! Tests the folders of runs.

use clap::Parser;

use super::*;

/// Options of a training.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    run: RunSettings,
}

fn settings() -> RunSettings {
    Options::parse_from(["msl", "--data", "data"]).run
}

fn write(folder: &Path) -> Result<()> {
    Ok(fs::write(folder.join("weights"), "some")?)
}

fn run(folder: &Path) -> (RunFolder, Lock) {
    let trie = TokenTrie::new([(1, vec![1, 2])]).unwrap();
    let path = folder.join("run");
    let output = OutputFolder::create(&path, false, &[]).unwrap();
    let save = |folder: &Path| {
        write(folder)?;
        let hash = || "0".repeat(64);
        Ok(MadeWith {
            titles: hash(),
            rows: hash(),
            tokenizer: hash(),
            trie: None,
            weights: None,
        })
    };
    RunFolder::create(&path, output, &settings(), &trie, save).unwrap()
}

#[test]
fn a_run_is_what_it_was_told_from_its_first_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (run, lock) = run(folder.path());
    assert_eq!(run.settings(), &settings());
    assert_eq!(run.steps().unwrap(), [0]);
    assert_eq!(run.trie().unwrap().item_count(), 1);
    assert!(run.lock().is_err(), "it is locked from its first moment");
    drop(lock);
    let opened = RunFolder::open(run.path()).unwrap();
    assert_eq!(opened.made_with(), run.made_with());
    assert!(RunFolder::open(folder.path()).is_err());
}

#[test]
fn a_trie_that_is_another_or_a_pointer_of_git_lfs_is_named_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _lock) = run(folder.path());
    let path = run.path().join(TRIE_FILE);
    let refusal = || format!("{:#}", run.trie().unwrap_err());
    fs::write(
        &path,
        "version https://git-lfs.github.com/spec/v1\noid sha256:0",
    )
    .unwrap();
    let pointer = refusal();
    assert!(
        pointer.contains(TRIE_FILE) && pointer.contains("git-lfs"),
        "{pointer}"
    );
    TokenTrie::new([(1, vec![1, 3])])
        .unwrap()
        .save(&path)
        .unwrap();
    assert!(refusal().contains("not the trie that the run was trained with"));
}

#[test]
fn the_last_and_the_best_checkpoint_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (run, lock) = run(folder.path());
    for (step, best, kept) in [
        (5, None, vec![5]),
        (10, Some(10), vec![10]),
        (15, Some(10), vec![10, 15]),
        (100, Some(10), vec![10, 100]),
        (105, Some(105), vec![105]),
    ] {
        run.save(&lock, step, best, write).unwrap();
        assert_eq!(run.steps().unwrap(), kept);
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_last_one_there() {
    let folder = tempfile::tempdir().unwrap();
    let (run, lock) = run(folder.path());
    run.save(&lock, 5, None, write).unwrap();
    let full = |folder: &Path| {
        write(folder)?;
        bail!("no space left on device")
    };
    assert!(run.save(&lock, 10, None, full).is_err());
    assert_eq!(run.steps().unwrap(), [5]);
    // What a killed process leaves is neither a checkpoint nor in the way.
    let left = run.path().join("checkpoint-10.partial-abc");
    fs::create_dir(&left).unwrap();
    assert_eq!(run.steps().unwrap(), [5]);
    run.clean(&lock).unwrap();
    assert!(!left.exists());
}

#[test]
fn a_checkpoint_is_not_written_into_a_folder_that_is_no_longer_the_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (run, lock) = run(folder.path());
    fs::rename(run.path(), folder.path().join("moved")).unwrap();
    let refusal = run.save(&lock, 5, None, write).unwrap_err().to_string();
    assert!(
        refusal.contains("was moved, deleted or replaced"),
        "{refusal}"
    );
    assert!(!run.path().exists());
    let (other, _other_lock) = self::run(folder.path());
    assert!(run.save(&lock, 5, None, write).is_err());
    assert_eq!(other.steps().unwrap(), [0]);
}

#[test]
#[cfg(unix)]
fn nothing_in_a_run_leads_out_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _lock) = run(folder.path());
    let victim = folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    for name in ["ranks.csv", "evaluation.json", "checkpoint-0/state.json"] {
        let path = run.path().join(name);
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let refusal = RunFolder::open(run.path()).err().unwrap().to_string();
        assert!(
            refusal.contains(name) && refusal.contains("symbolic link"),
            "{refusal}"
        );
        fs::remove_file(path).unwrap();
    }
    RunFolder::open(run.path()).unwrap();
}
