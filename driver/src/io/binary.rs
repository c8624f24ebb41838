//! Opens binary files that others wrote, and turns panics of dependencies on damaged files into errors.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{Read, Seek},
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Once,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::named;

/// The first bytes of the pointer that git-lfs puts in the place of a large file.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Opens a regular file. Opening a pipe may wait for ever, and a device may have no end.
pub fn open(path: &Path) -> Result<File> {
    let cannot = || format!("cannot read {}", path.display());
    let kind = fs::metadata(path).with_context(cannot)?;
    ensure!(
        kind.is_file(),
        "{} is {}: expected a regular file",
        path.display(),
        named(kind.file_type())
    );
    let mut file = File::open(path).with_context(cannot)?;
    let mut beginning = [0; LFS_POINTER.len()];
    if file.read_exact(&mut beginning).is_ok() && beginning == LFS_POINTER {
        bail!(
            "{} is a pointer of git-lfs, not the file that it stands for: fetch that with git lfs pull",
            path.display()
        );
    }
    file.rewind().with_context(cannot)?;
    Ok(file)
}

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Calls a dependency on the content of a file. A panic, as on damage that the dependency does not check for, becomes
/// an error.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T> {
    static QUIET_WHERE_EXPECTED: Once = Once::new();
    QUIET_WHERE_EXPECTED.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !EXPECTED.get() {
                report(panic);
            }
        }));
    });
    let outer = EXPECTED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(outer);
    result.map_err(|panic| {
        let message = (panic.downcast_ref::<String>().map(String::as_str))
            .or_else(|| panic.downcast_ref::<&str>().copied());
        anyhow!("it is damaged: {}", message.unwrap_or("it cannot be used"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_file_itself_is_named_as_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let refusal = |path: &Path| format!("{:#}", open(path).unwrap_err());
        assert!(refusal(&path).contains("model.gguf"));
        fs::write(&path, b"version https://git-lfs.github.com/spec/v1\noid").unwrap();
        assert!(refusal(&path).contains("git-lfs"));
        assert!(refusal(folder.path()).contains("is a folder: expected a regular file"));
        fs::write(&path, b"GGUF").unwrap();
        assert_eq!(open(&path).unwrap().stream_position().unwrap(), 0);
    }

    #[test]
    fn a_panic_of_a_dependency_is_an_error_that_says_what_it_said() {
        assert_eq!(catch_panic(|| 1).unwrap(), 1);
        let refusal = catch_panic(|| "ab"["abc".len()..].len()).unwrap_err();
        assert!(refusal.to_string().contains("out of bounds"), "{refusal}");
    }
}
