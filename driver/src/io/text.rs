//! Opens text files that others wrote, and names what they are instead of UTF-8 text.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder;

use super::binary;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// The first bytes of files that are no UTF-8 text, what such a file is, and what to do about it.
const OTHERS: [(&[u8], &str, &str); 6] = [
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (
        b"\x00\x05\x16\x07",
        "what macOS keeps beside a file (AppleDouble)",
        "give the file itself",
    ),
    (GZIP, "compressed by gzip", "unpack it"),
    (ZSTD, "compressed by zstd", "unpack it"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
];

/// Opens a file of UTF-8 text, and skips a byte order mark. An error names the file and says what it is instead.
pub fn open_text(path: &Path) -> Result<Box<dyn BufRead>> {
    checked(path, Box::new(BufReader::new(binary::open(path)?)))
}

/// Opens a file of UTF-8 text that may be compressed by gzip or zstd.
pub fn open_compressed(path: &Path) -> Result<Box<dyn BufRead>> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut file = BufReader::new(binary::open(path)?);
    let beginning = file.fill_buf().with_context(unreadable)?;
    let reader: Box<dyn BufRead> = if beginning.starts_with(GZIP) {
        Box::new(BufReader::new(MultiGzDecoder::new(file)))
    } else if beginning.starts_with(ZSTD) {
        Box::new(BufReader::new(
            Decoder::with_buffer(file).with_context(unreadable)?,
        ))
    } else {
        Box::new(file)
    };
    checked(path, reader)
}

/// Checks the beginning of a text, and skips a byte order mark.
fn checked(path: &Path, mut reader: Box<dyn BufRead>) -> Result<Box<dyn BufRead>> {
    let unreadable = || format!("cannot read {}", path.display());
    let beginning = reader.fill_buf().with_context(unreadable)?;
    for (first, what, advice) in OTHERS {
        if beginning.starts_with(first) {
            bail!("{} is {what}: {advice}", path.display());
        }
    }
    ensure!(
        !beginning.contains(&0),
        "{} holds bytes of value 0, which text in UTF-8 does not (text in UTF-16 does): save it as UTF-8",
        path.display()
    );
    if beginning.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
    }
    Ok(reader)
}

/// Reads a whole file of UTF-8 text.
pub fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    (open_text(path)?.read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(bytes: &[u8]) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file.txt");
        fs::write(&path, bytes)?;
        let mut text = String::new();
        open_text(&path)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn a_byte_order_mark_of_utf_8_is_no_part_of_the_text() {
        assert_eq!(open("\u{feff}Émma".as_bytes()).unwrap(), "Émma");
        assert_eq!(open(b"").unwrap(), "");
    }

    #[test]
    fn what_is_no_utf_8_text_is_named_as_what_it_is() {
        for (bytes, expected) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid"[..],
                "git-lfs",
            ),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"\xfe\xff\0{", "UTF-16"),
            (b"{\0\"\0", "UTF-16"),
            (b"\0\x05\x16\x07\0\x02", "AppleDouble"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"PK\x03\x04", "zip"),
        ] {
            let error = open(bytes).unwrap_err().to_string();
            assert!(
                error.contains("file.txt") && error.contains(expected),
                "{error}"
            );
        }
    }

    #[test]
    fn compressed_text_is_unpacked_where_it_is_expected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.txt");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, "\u{feff}Émma".as_bytes()).unwrap();
        let zstd = zstd::encode_all("Émma".as_bytes(), 1).unwrap();
        for bytes in [gzip.finish().unwrap(), zstd, "Émma".into()] {
            fs::write(&path, bytes).unwrap();
            let mut text = String::new();
            (open_compressed(&path).unwrap().read_to_string(&mut text)).unwrap();
            assert_eq!(text, "Émma");
        }
        fs::write(&path, [ZSTD, b"damaged"].concat()).unwrap();
        assert!(open_compressed(&path).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn folders_pipes_and_devices_are_refused_without_being_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for (path, expected) in [
            (folder.path(), "a folder"),
            (&pipe, "a pipe"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let error = open_text(path).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
