//! Writes output files atomically: a file is complete or it does not exist.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::{NamedTempFile, TempPath};

use super::{entries, file_name, named, parent};

/// Stands in the name of what is being written, before random letters.
pub const PARTIAL: &str = ".partial-";

/// Number of random letters in the name of a file that is being written. Other names are unlikely to end with so many.
const RANDOM_LETTERS: usize = 12;

/// A file that is written under another name and renamed when it is complete. If it is dropped before, nothing is left.
/// A stream of the shell, such as `/dev/stdout`, is written directly.
pub struct OutputFile {
    file: BufWriter<File>,
    /// The temporary path and the target; `None` for a stream.
    aside: Option<(TempPath, PathBuf)>,
    /// The path that was asked for.
    path: PathBuf,
}

impl OutputFile {
    /// Begins a file. An existing regular file is replaced at the end; anything else is an error.
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

    /// Returns the path that was asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the complete file to its target, after it has reached the disk.
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

    /// Renames the complete file to its target, and returns the path to print: none of a stream, into which it would go itself.
    pub fn finish_and_name(self) -> Result<Option<PathBuf>> {
        let name = self.aside.is_some().then(|| self.path.clone());
        self.finish()?;
        Ok(name)
    }

    /// Writes a whole file atomically.
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

/// Creates a file beside a target. It is locked, where the file system has locks, which tells other processes that it
/// is being written.
pub fn begin_beside(target: &Path) -> io::Result<NamedTempFile> {
    let name = file_name(target);
    let prefix = format!("{name}{PARTIAL}");
    let mut beside = tempfile::Builder::new();
    beside.prefix(&prefix).rand_bytes(RANDOM_LETTERS);
    #[cfg(unix)]
    beside.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    loop {
        let file = beside.tempfile_in(parent(target))?;
        // Before it was locked, another process may have taken it for one that nobody writes, and removed it. Such a
        // process has the lock for a moment, which is waited for.
        if file.as_file().lock().is_err() || file.path().exists() {
            return Ok(file);
        }
    }
}

/// Returns the target of a path behind all links, and its permissions if it exists.
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

/// Opens a stream of the shell, or `/dev/null`: there is nothing to replace.
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

/// Removes what killed processes have left of a file. What a living process writes is locked.
fn remove_abandoned(target: &Path) {
    let name = file_name(target);
    let prefix = format!("{name}{PARTIAL}");
    let is_part = |path: &PathBuf| {
        let name = file_name(path);
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
