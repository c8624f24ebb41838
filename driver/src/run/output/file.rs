use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::{NamedTempFile, TempPath};

use super::parent;
use crate::run::layout::{PARTIAL, entries, named};

/// Letters that tell the files apart which are being written, more than any other name is likely to end with.
const RANDOM_LETTERS: usize = 12;

/// A file that is written beside its place and put there when it is complete. Dropped before that, it leaves nothing
/// behind. One of the shell's streams, like `/dev/stdout`, is written as it is.
pub struct OutputFile {
    file: BufWriter<File>,
    /// Where it is written, and where it is to be.
    aside: Option<(TempPath, PathBuf)>,
    /// As it was called.
    path: PathBuf,
}

impl OutputFile {
    /// Begins a file. One that is there is replaced at the end, unless it is no regular file.
    pub fn create(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot write {}", path.display());
        let (file, aside) = match stream(path) {
            Some(stream) => (stream.with_context(cannot)?, None),
            None => {
                let (target, permissions) = target(path)?;
                remove_abandoned(&target);
                let (file, aside) = begin_beside(&target).with_context(cannot)?.into_parts();
                if let Some(permissions) = permissions {
                    file.set_permissions(permissions).with_context(cannot)?;
                }
                (file, Some((aside, target)))
            }
        };
        Ok(Self {
            file: BufWriter::new(file),
            aside,
            path: path.to_owned(),
        })
    }

    /// As it was called.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the complete file in its place, once it has reached the disk.
    pub fn finish(self) -> Result<()> {
        let Self { file, aside, path } = self;
        let cannot = || format!("cannot write {}", path.display());
        let file = (file.into_inner())
            .map_err(io::IntoInnerError::into_error)
            .with_context(cannot)?;
        let Some((aside, target)) = aside else {
            return Ok(());
        };
        file.sync_all().with_context(cannot)?;
        aside.persist(&target).with_context(cannot)
    }

    /// Writes the whole of a file and puts it in its place.
    pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
        let mut file = Self::create(path)?;
        (file.write_all(content)).with_context(|| format!("cannot write {}", path.display()))?;
        file.finish()
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A new file beside a place, by a name of its own. It is locked, which tells others that it is being written; a file
/// system without locks has none to tell.
pub fn begin_beside(target: &Path) -> io::Result<NamedTempFile> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}{PARTIAL}");
    let mut beside = tempfile::Builder::new();
    beside.prefix(&prefix).rand_bytes(RANDOM_LETTERS);
    #[cfg(unix)]
    beside.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = beside.tempfile_in(parent(target))?;
    let _ = file.as_file().try_lock();
    Ok(file)
}

/// Where a file is to be, behind all links, and what it may be read by, if it is there.
fn target(path: &Path) -> Result<(PathBuf, Option<Permissions>)> {
    let folder = parent(path);
    ensure!(
        folder.is_dir(),
        "cannot write {}: there is no folder {}",
        path.display(),
        folder.display()
    );
    let there = match fs::metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => {
            return Ok((path.to_owned(), None));
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot write {}", path.display()));
        }
    };
    if !there.is_file() {
        bail!(
            "cannot write {}: it is {}, where a file was expected",
            path.display(),
            named(there.file_type())
        );
    }
    let target =
        fs::canonicalize(path).with_context(|| format!("cannot locate {}", path.display()))?;
    Ok((target, Some(there.permissions())))
}

/// A stream that a shell has opened, or the one that takes everything: there is nothing in it to be replaced.
#[cfg(unix)]
fn stream(path: &Path) -> Option<io::Result<File>> {
    use std::os::fd::AsFd;
    let own = |stream: std::os::fd::BorrowedFd| Ok(File::from(stream.try_clone_to_owned()?));
    match path.to_str()? {
        "/dev/stdout" => Some(own(io::stdout().as_fd())),
        "/dev/stderr" => Some(own(io::stderr().as_fd())),
        name if name == "/dev/null" || name.starts_with("/dev/fd/") => {
            Some(File::options().write(true).open(path))
        }
        _ => None,
    }
}

#[cfg(not(unix))]
fn stream(_: &Path) -> Option<io::Result<File>> {
    None
}

/// Removes what processes that were killed have left of a file: what a living one writes is locked.
fn remove_abandoned(target: &Path) {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}{PARTIAL}");
    let is_part = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let letters = name.strip_prefix(&prefix);
        path.symlink_metadata().is_ok_and(|there| there.is_file())
            && letters.is_some_and(|letters| letters.len() == RANDOM_LETTERS)
    };
    for part in entries(parent(target)).unwrap_or_default() {
        if is_part(&part) && File::open(&part).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_when_it_is_whole_and_keeps_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranks.csv");
        fs::write(&path, "old").unwrap();
        let mut file = OutputFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let before = fs::metadata(&path).unwrap().permissions();
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions(), before);
        drop(OutputFile::create(&path).unwrap());
        assert_eq!(entries(folder.path()).unwrap(), [path]);
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let others = ["ranks.csv.partial-backup", "my.csv.partial-abcdefghijkl"];
        for name in others.iter().chain(&["ranks.csv.partial-abcdefghijkl"]) {
            fs::write(at(name), "").unwrap();
        }
        let living = OutputFile::create(&at("ranks.csv")).unwrap();
        drop(OutputFile::create(&at("ranks.csv")).unwrap());
        assert!(!at("ranks.csv.partial-abcdefghijkl").exists());
        assert!(others.iter().all(|name| at(name).exists()));
        living.finish().unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn only_a_regular_file_is_replaced_and_a_link_of_the_command_line_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        for name in ["socket", "folder", "dangling"] {
            let refusal = OutputFile::create(&at(name)).err().unwrap().to_string();
            assert!(refusal.contains(name), "{refusal}");
            assert!(at(name).symlink_metadata().is_ok());
        }
        assert!(OutputFile::create(Path::new("/dev/zero")).is_err());
        OutputFile::write_whole(Path::new("/dev/null"), b"gone").unwrap();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        OutputFile::write_whole(&at("link"), b"new").unwrap();
        assert_eq!(fs::read(at("file")).unwrap(), b"new");
        assert!(at("link").is_symlink());
    }
}
