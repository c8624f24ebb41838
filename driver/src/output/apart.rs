use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use same_file::is_same_file;

use crate::layout::entries;

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
            !real
                .ancestors()
                .any(|place| is_same_file(place, output).unwrap_or(false)),
            "{option} {} would replace {}, which is read: name another",
            output.display(),
            input.display()
        );
    }
    Ok(())
}

/// A path and, where it is that of a folder, what is in it, for some of that may lie elsewhere.
fn with_entries(path: &Path) -> Vec<PathBuf> {
    let mut paths = entries(path).unwrap_or_default();
    paths.push(path.to_owned());
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
        fs::write(at("elsewhere/blobs/weights"), "").unwrap();
        std::os::unix::fs::symlink(at("project"), at("link")).unwrap();
        let linked = at("project/data/weights");
        std::os::unix::fs::symlink(at("elsewhere/blobs/weights"), linked).unwrap();
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
            "elsewhere/blobs/weights",
        ] {
            assert!(check(output).is_err(), "{output}");
        }
        fs::create_dir(at("project/data/run")).unwrap();
        fs::create_dir(at("project/data2")).unwrap();
        for output in ["project/data/run", "project/data2", "nowhere"] {
            check(output).unwrap();
        }
    }
}
