//! Files that are read: regular ones, and what is not the file that its name promises is named as what it is.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{Read, Seek},
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Once,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// What a file begins with that git-lfs puts in the place of a large one.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const UTF_8_MARK: &str = "\u{feff}";
const UTF_16_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// Opens a regular file. A pipe would have to be waited for, and a device may have no end.
pub fn open(path: &Path) -> Result<File> {
    let cannot = || format!("cannot read {}", path.display());
    let kind = fs::metadata(path).with_context(cannot)?;
    ensure!(kind.is_file(), "{} is not a regular file", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let mut beginning = [0; LFS_POINTER.len()];
    if file.read_exact(&mut beginning).is_ok() && beginning == LFS_POINTER {
        bail!(
            "{} is a git-lfs pointer, not the file that it stands for: fetch it with git lfs pull",
            path.display()
        );
    }
    file.rewind().with_context(cannot)?;
    Ok(file)
}

/// Reads a file of text in UTF-8, with or without a byte order mark.
pub fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    open(path)?
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if UTF_16_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        bail!(
            "{} begins with the byte order mark of UTF-16: save it as UTF-8",
            path.display()
        );
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| anyhow!("{} is not text in UTF-8: {error}", path.display()))?;
    Ok(match text.strip_prefix(UTF_8_MARK) {
        Some(text) => text.to_owned(),
        None => text,
    })
}

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Lets a dependency work on what a file holds. Where the file is damaged in a way that the dependency does not check,
/// its panic becomes an error.
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
    fn text_is_read_with_and_without_a_mark_and_what_is_no_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.json");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_text(&path).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(read(b"{}").unwrap(), "{}");
        assert_eq!(read(b"\xef\xbb\xbf{}").unwrap(), "{}");
        for (bytes, said) in [
            (&b"\xff\xfe{\0}\0"[..], "UTF-16"),
            (b"{\xff}", "not text in UTF-8"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs"),
        ] {
            let refusal = read(bytes).unwrap_err();
            assert!(
                refusal.contains(said) && refusal.contains("file.json"),
                "{refusal}"
            );
        }
        let refusal = format!("{:#}", read_text(folder.path()).unwrap_err());
        assert!(refusal.contains("not a regular file"), "{refusal}");
    }

    #[test]
    fn a_panic_of_a_dependency_is_an_error_that_says_what_it_said() {
        assert_eq!(catch_panic(|| 1).unwrap(), 1);
        let refusal = catch_panic(|| "ab"["abc".len()..].len()).unwrap_err();
        assert!(refusal.to_string().contains("out of bounds"), "{refusal}");
    }
}
