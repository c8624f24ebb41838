//! With the feature `cuda` or `cust`: compiles kernels/*.cu, one fatbin each, for the crate to embed.
//!
//! `NVCC`, `CUDA_HOME`, `CUDA_PATH` and `PATH` say where nvcc is; `CANDLE_TRIE_CUDA_ARCHS` (`90`,
//! or `80,90`) narrows the architectures. Where there is no CUDA toolkit, scripts/cuda-toolkit gets
//! what is needed.

#[path = "build/cubin.rs"]
mod cubin;
#[path = "build/ptxas.rs"]
mod ptxas;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Ampere (A100; RTX 30), Ada, Hopper, Blackwell (B200; RTX 50). PTX of the first and the last is
/// for all others.
const ARCHITECTURES: &str = "80,86,89,90,100,120";

const VARIABLES: [&str; 4] = ["NVCC", "CUDA_HOME", "CUDA_PATH", "CANDLE_TRIE_CUDA_ARCHS"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    let wanted = ["CARGO_FEATURE_CUDA", "CARGO_FEATURE_CUST"];
    if wanted.iter().all(|feature| env::var_os(feature).is_none()) {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(reason) = compile() {
        eprintln!("\ncandle-trie cannot compile its CUDA kernels.\n{reason}\n");
        std::process::exit(1);
    }
}

fn compile() -> Result<(), String> {
    let nvcc = find_nvcc()?;
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?);
    let mut modules = String::from("[\n");
    let mut log = String::new();
    for source in sources()? {
        let image = out.join(
            source
                .with_extension("fatbin")
                .file_name()
                .unwrap_or_default(),
        );
        let text = compile_source(&nvcc, &source, &image)?;
        let kernels = ptxas::kernel_names(&source.display().to_string(), &text)?;
        modules +=
            &format!("    Module {{ kernels: &{kernels:?}, image: include_bytes!({image:?}) }},\n");
        log += &text;
    }
    modules.push(']');
    let write = |name: &str, text: &str| {
        fs::write(out.join(name), text).map_err(|error| format!("{name}: {error}"))
    };
    write("modules.rs", &modules)?;
    write("ptxas.txt", &log)?;
    println!(
        "cargo::rustc-env=CANDLE_TRIE_PTXAS={}",
        out.join("ptxas.txt").display()
    );
    Ok(())
}

fn sources() -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir("kernels").map_err(|error| format!("kernels: {error}"))?;
    let mut sources: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    Ok(sources)
}

/// The compiler's words, which say for every kernel and target what it uses, and a line with the size of its code.
fn compile_source(nvcc: &Path, source: &Path, image: &Path) -> Result<String, String> {
    // nvcc keeps the code of each target here, which in the image is compressed.
    let kept = image.with_extension("kept");
    fs::create_dir_all(&kept).map_err(|error| format!("{}: {error}", kept.display()))?;
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v", "--threads"]);
    command.arg(env::var("NUM_JOBS").unwrap_or_else(|_| "1".into()));
    command.arg("--keep").arg("--keep-dir").arg(&kept);
    command.args(targets()?).arg(source).arg("-o").arg(image);
    let output = command
        .output()
        .map_err(|error| format!("{}: {error}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!(
            "{command:?} failed:\n{text}\
             A toolkit older than CUDA 12.8 does not know all architectures: set CANDLE_TRIE_CUDA_ARCHS, to 90 for example."
        ));
    }
    let sizes = code_sizes(&kept)?;
    fs::remove_dir_all(&kept).map_err(|error| format!("{}: {error}", kept.display()))?;
    Ok(text + &sizes)
}

/// A line for each kernel of each target that nvcc has kept in a folder.
fn code_sizes(folder: &Path) -> Result<String, String> {
    let failed = |error| format!("{}: {error}", folder.display());
    let mut lines = String::new();
    for entry in fs::read_dir(folder).map_err(failed)?.flatten() {
        // SOURCE.compute_90.cubin, or SOURCE.compute_90.sm_90.cubin where its PTX is in the image too.
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((_, number)) =
            (name.strip_suffix(".cubin")).and_then(|name| name.rsplit_once('_'))
        else {
            continue;
        };
        let sizes = cubin::code_sizes(&fs::read(entry.path()).map_err(failed)?);
        let sizes = sizes.ok_or_else(|| format!("{name} is no ELF file of 64 bits"))?;
        for (kernel, bytes) in sizes {
            lines += &ptxas::code_line(&kernel, &format!("sm_{number}"), bytes);
        }
    }
    Ok(lines)
}

fn targets() -> Result<Vec<String>, String> {
    let wanted = env::var("CANDLE_TRIE_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES.into());
    let numbers = wanted.split([',', ' ']).filter(|part| !part.is_empty());
    let mut numbers = numbers
        .map(|part| {
            part.parse().map_err(|_| {
                format!("CANDLE_TRIE_CUDA_ARCHS={wanted}: '{part}' is not a number such as 90")
            })
        })
        .collect::<Result<Vec<u32>, _>>()?;
    numbers.sort_unstable();
    numbers.dedup();
    let (Some(oldest), Some(newest)) = (numbers.first(), numbers.last()) else {
        return Err("CANDLE_TRIE_CUDA_ARCHS names no architecture".into());
    };
    let mut targets: Vec<String> = numbers
        .iter()
        .map(|n| format!("-gencode=arch=compute_{n},code=sm_{n}"))
        .collect();
    targets.push(format!(
        "-gencode=arch=compute_{oldest},code=compute_{oldest}"
    ));
    if newest != oldest {
        targets.push(format!(
            "-gencode=arch=compute_{newest},code=compute_{newest}"
        ));
    }
    Ok(targets)
}

fn find_nvcc() -> Result<PathBuf, String> {
    let in_toolkit =
        |variable| env::var_os(variable).map(|home| Path::new(&home).join("bin").join("nvcc"));
    let named = [
        env::var_os("NVCC").map(PathBuf::from),
        in_toolkit("CUDA_HOME"),
        in_toolkit("CUDA_PATH"),
    ];
    if let Some(found) = named.into_iter().flatten().find(|path| path.is_file()) {
        return Ok(found);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|path| path.is_file()).ok_or_else(|| {
        "The features `cuda` and `cust` need NVIDIA's compiler, nvcc, and there is none in NVCC, CUDA_HOME/bin, CUDA_PATH/bin or PATH.\n\
         Install the CUDA toolkit (13.0 or later), or run: eval \"$(scripts/cuda-toolkit)\"\n\
         Without these features nothing of CUDA is needed."
            .into()
    })
}
