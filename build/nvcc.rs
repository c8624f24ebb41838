//! NVIDIA's compiler: where it is, and which architectures it is asked for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Ampere (A100; RTX 30), Ada, Hopper, Blackwell (B200; RTX 50).
pub const ARCHITECTURES: &str = "80,86,89,90,100,120";

/// `cp.async` and matrix products of bf16 are there from Ampere on.
const OLDEST: u32 = 80;

/// Lists the places where nvcc may be, the likeliest first: `NVCC`, `bin` of `CUDA_HOME` and of `CUDA_PATH`, and the folders of `PATH`.
///
/// `suffix` is that of the build machine's executables: `.exe` on Windows.
pub fn candidates(variable: impl Fn(&str) -> Option<OsString>, suffix: &str) -> Vec<PathBuf> {
    let executable = format!("nvcc{suffix}");
    let named = variable("NVCC").map(PathBuf::from);
    let in_toolkits = (["CUDA_HOME", "CUDA_PATH"].into_iter())
        .filter_map(&variable)
        .map(|home| Path::new(&home).join("bin").join(&executable));
    let mut places: Vec<_> = named.into_iter().chain(in_toolkits).collect();
    places.extend(in_path(&variable, suffix));
    places
}

/// The places among these in which cudarc looks too.
pub fn in_path(variable: impl Fn(&str) -> Option<OsString>, suffix: &str) -> Vec<PathBuf> {
    let path = variable("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path);
    folders
        .map(|folder| folder.join(format!("nvcc{suffix}")))
        .collect()
}

/// An architecture of GPUs as nvcc writes it, without its prefix: `90`, or with the features of that GPU alone (`90a`) or of
/// its family (`100f`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture {
    number: u32,
    features: Option<char>,
}

impl Architecture {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(['a', 'f']);
        let features = text[digits.len()..].chars().next();
        let is_known = text.len() - digits.len() <= 1;
        let number = digits.parse().ok()?;
        is_known.then_some(Self { number, features })
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.number)?;
        self.features
            .map_or(Ok(()), |features| write!(formatter, "{features}"))
    }
}

/// The architectures to compile for, and those that were asked for and this nvcc does not know.
#[derive(Debug, PartialEq, Eq)]
pub struct Selection {
    /// Sorted, each once.
    pub architectures: Vec<Architecture>,
    /// Architectures of [`ARCHITECTURES`] that are newer than the toolkit.
    pub unknown: Vec<Architecture>,
}

/// Chooses the architectures: those that `wanted` names (`90a` or `80,90`), or else those of [`ARCHITECTURES`] that nvcc knows.
///
/// `listed` is what `nvcc --list-gpu-arch` prints. What is named and not known is an error.
pub fn select(wanted: Option<&str>, listed: &str) -> Result<Selection, String> {
    let known: Vec<u32> = (listed.split_whitespace())
        .filter_map(|word| Architecture::parse(word.strip_prefix("compute_")?))
        .map(|architecture| architecture.number)
        .collect();
    if known.is_empty() {
        return Err(format!(
            "`nvcc --list-gpu-arch` lists no architecture (`compute_90`, for example), but: {listed:?}. \
             CUDA 11.4 and later list them."
        ));
    }
    let (named, others) = parse(wanted.unwrap_or(ARCHITECTURES))?
        .into_iter()
        .partition(|architecture| known.contains(&architecture.number));
    let selection = Selection {
        architectures: named,
        unknown: others,
    };
    if selection.architectures.is_empty() || (wanted.is_some() && !selection.unknown.is_empty()) {
        return Err(format!(
            "This nvcc does not know the architecture {}. It knows {}. \
             Install a newer CUDA toolkit, or name in CANDLE_TRIE_CUDA_ARCHS those that you need.",
            listing(&selection.unknown),
            known
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        ));
    }
    Ok(selection)
}

/// Joins architectures by commas.
pub fn listing(architectures: &[Architecture]) -> String {
    let names: Vec<_> = architectures.iter().map(ToString::to_string).collect();
    names.join(", ")
}

fn parse(wanted: &str) -> Result<Vec<Architecture>, String> {
    let parts = wanted.split([',', ' ']).filter(|part| !part.is_empty());
    let mut architectures = parts
        .map(|part| match Architecture::parse(part) {
            None => Err(format!(
                "CANDLE_TRIE_CUDA_ARCHS={wanted}: '{part}' is not an architecture such as 90, 90a or 100f"
            )),
            Some(architecture) if architecture.number < OLDEST => Err(format!(
                "CANDLE_TRIE_CUDA_ARCHS={wanted}: the kernels need architecture {OLDEST} (Ampere) or newer, not {part}"
            )),
            Some(architecture) => Ok(architecture),
        })
        .collect::<Result<Vec<_>, _>>()?;
    architectures.sort_unstable();
    architectures.dedup();
    if architectures.is_empty() {
        return Err(format!(
            "CANDLE_TRIE_CUDA_ARCHS={wanted:?} names no architecture"
        ));
    }
    Ok(architectures)
}

/// Returns nvcc's arguments for these architectures: machine code for each, and PTX of the oldest and the newest, which a driver
/// compiles for all others. PTX that uses the features of one GPU or family serves no other, so there is none of it.
pub fn targets(architectures: &[Architecture]) -> Vec<String> {
    let for_all = |architecture: &&Architecture| architecture.features.is_none();
    let oldest = architectures.iter().find(for_all);
    let newest = architectures.iter().rfind(for_all);
    let newest = newest.filter(|newest| oldest != Some(newest));
    let machine_code =
        (architectures.iter()).map(|name| format!("-gencode=arch=compute_{name},code=sm_{name}"));
    let ptx = (oldest.into_iter().chain(newest))
        .map(|name| format!("-gencode=arch=compute_{name},code=compute_{name}"));
    machine_code.chain(ptx).collect()
}

/// Returns the names that a source includes by `#include "NAME"`.
pub fn included(source: &str) -> Vec<&str> {
    let lines = source.lines().map(str::trim_start);
    lines
        .filter_map(|line| line.strip_prefix("#include \"")?.split('"').next())
        .collect()
}
