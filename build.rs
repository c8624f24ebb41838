//! With the feature `cuda`, `cust` or `raw-cuda`: compiles kernels/*.cu, one fatbin each, for the crate to embed.
//!
//! `NVCC`, `CUDA_HOME`, `CUDA_PATH` and `PATH` say where nvcc is, and `CANDLE_TRIE_CUDA_ARCHS` (`90a`, or `80,90`) for which
//! architectures it compiles. On docs.rs, where there is no nvcc, no kernels are embedded. Where there is no CUDA toolkit,
//! scripts/cuda-toolkit of the repository gets what is needed.

#[path = "build/cubin.rs"]
mod cubin;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/ptxas.rs"]
mod ptxas;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

const VARIABLES: [&str; 6] = [
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "CANDLE_TRIE_CUDA_ARCHS",
    "CUDARC_CUDA_VERSION",
    "DOCS_RS",
];

/// The options of nvcc that are the same for every source.
const FLAGS: [&str; 5] = ["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    let wanted = ["CUDA", "CUST", "RAW_CUDA"].map(|name| format!("CARGO_FEATURE_{name}"));
    if wanted.iter().all(|feature| env::var_os(feature).is_none()) {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let embedded = if env::var_os("DOCS_RS").is_some() {
        embed(&[])
    } else {
        Compiler::find()
            .and_then(|compiler| compiler.compile_kernels())
            .and_then(|kernels| embed(&kernels))
    };
    if let Err(reason) = embedded {
        eprintln!("\ncandle-trie cannot compile its CUDA kernels.\n{reason}\n");
        std::process::exit(1);
    }
}

/// A compiled source.
struct Compiled {
    image: PathBuf,
    kernels: Vec<String>,
    /// The output of nvcc about every kernel and architecture, with lines that give the sizes of their code.
    log: String,
}

/// Writes what the crate embeds: the images with the names of their kernels, and what nvcc said of them.
fn embed(compiled: &[Compiled]) -> Result<(), String> {
    let modules = (compiled.iter()).map(|Compiled { image, kernels, .. }| {
        format!("    Module {{ kernels: &{kernels:?}, image: include_bytes!({image:?}) }},\n")
    });
    let log: String = (compiled.iter()).map(|compiled| &*compiled.log).collect();
    let out = out_dir()?;
    write(
        &out.join("modules.rs"),
        &format!("[\n{}]", modules.collect::<String>()),
    )?;
    write(&out.join("ptxas.txt"), &log)?;
    println!(
        "cargo::rustc-env=CANDLE_TRIE_PTXAS={}",
        out.join("ptxas.txt").display()
    );
    Ok(())
}

/// nvcc, and what it is asked for.
struct Compiler {
    nvcc: PathBuf,
    /// The output of `nvcc --version`.
    version: String,
    targets: Vec<String>,
    out: PathBuf,
}

impl Compiler {
    fn find() -> Result<Self, String> {
        let nvcc = find_nvcc()?;
        let wanted = env::var("CANDLE_TRIE_CUDA_ARCHS").ok();
        let listed = run(Command::new(&nvcc).arg("--list-gpu-arch"))?.0;
        let nvcc::Selection {
            architectures,
            unknown,
        } = nvcc::select(wanted.as_deref(), &listed)?;
        if !unknown.is_empty() {
            println!(
                "cargo::warning={} does not know the architecture {}: GPUs of that architecture get kernels that their driver \
                 compiles, when they are first used",
                nvcc.display(),
                nvcc::listing(&unknown)
            );
        }
        println!(
            "cargo::rustc-env=CANDLE_TRIE_COMPILED_FOR={}",
            nvcc::listing(&architectures)
        );
        Ok(Self {
            version: run(Command::new(&nvcc).arg("--version"))?.0,
            targets: nvcc::targets(&architectures),
            out: out_dir()?,
            nvcc,
        })
    }

    /// Compiles the sources side by side, the longest first.
    fn compile_kernels(&self) -> Result<Vec<Compiled>, String> {
        let texts = kernel_sources()?;
        let is_source = |path: &&PathBuf| path.extension().is_some_and(|name| name == "cu");
        let mut sources: Vec<_> = texts.keys().filter(is_source).collect();
        sources.sort_by_key(|&source| std::cmp::Reverse(texts[source].len()));
        let jobs = env::var("NUM_JOBS").ok();
        let jobs = jobs.and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize);
        let workers = jobs.clamp(1, sources.len().max(1));
        let threads = jobs.div_ceil(workers);

        let next = AtomicUsize::new(0);
        let work = || {
            let mut compiled = Vec::new();
            while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                compiled.push(self.compile_unless_cached(source, &texts, threads)?);
            }
            Ok(compiled)
        };
        let finished: Vec<Result<Vec<Compiled>, String>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                (worker.join()).unwrap_or_else(|_| Err("a thread panicked".into()))
            };
            workers.into_iter().map(join).collect()
        });
        let mut compiled: Vec<_> = (finished.into_iter().collect::<Result<Vec<_>, _>>()?)
            .into_iter()
            .flatten()
            .collect();
        compiled.sort_by(|one, other| one.image.cmp(&other.image));
        Ok(compiled)
    }

    /// Compiles a source, unless an earlier run did with the same headers, compiler and arguments.
    fn compile_unless_cached(
        &self,
        source: &Path,
        texts: &BTreeMap<PathBuf, String>,
        threads: usize,
    ) -> Result<Compiled, String> {
        let stem = source.file_stem().unwrap_or_default();
        let image = self.out.join(stem).with_extension("fatbin");
        let (log_file, key_file) = (image.with_extension("txt"), image.with_extension("key"));
        let key = self.key(source, texts);
        let is_cached = fs::read_to_string(&key_file).is_ok_and(|found| found == key)
            && image.is_file()
            && log_file.is_file();
        if !is_cached {
            let log = self.compile(source, &image, threads)?;
            write(&log_file, &log)?;
            write(&key_file, &key)?;
        }
        let log = fs::read_to_string(&log_file)
            .map_err(|error| format!("{}: {error}", log_file.display()))?;
        let kernels = ptxas::kernel_names(&source.display().to_string(), &log)?;
        Ok(Compiled {
            image,
            kernels,
            log,
        })
    }

    /// Compiles a source, and returns what nvcc says of each of its kernels for each architecture.
    fn compile(&self, source: &Path, image: &Path, threads: usize) -> Result<String, String> {
        // nvcc keeps the code of each architecture here, which in the image is compressed.
        let kept = image.with_extension("kept");
        let failed = |error| format!("{}: {error}", kept.display());
        if kept.exists() {
            fs::remove_dir_all(&kept).map_err(failed)?;
        }
        fs::create_dir_all(&kept).map_err(failed)?;
        let mut command = Command::new(&self.nvcc);
        command.args(FLAGS);
        command.arg("--threads").arg(threads.to_string());
        command.arg("--keep").arg("--keep-dir").arg(&kept);
        command.args(&self.targets).arg(source).arg("-o").arg(image);
        let (_, log) = run(&mut command)?;
        let sizes = code_sizes(&kept)?;
        fs::remove_dir_all(&kept).map_err(failed)?;
        Ok(log + &sizes)
    }

    /// A hash of all that a source's image depends on.
    fn key(&self, source: &Path, texts: &BTreeMap<PathBuf, String>) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.version, &self.targets, FLAGS).hash(&mut hasher);
        let mut files = vec![source.to_path_buf()];
        let mut index = 0;
        while let Some((path, text)) = files.get(index).and_then(|path| texts.get_key_value(path)) {
            (path, text).hash(&mut hasher);
            for name in nvcc::included(text) {
                let header = path.with_file_name(name);
                if !files.contains(&header) && texts.contains_key(&header) {
                    files.push(header);
                }
            }
            index += 1;
        }
        format!("{:016x}", hasher.finish())
    }
}

/// The text of each file in the folder of kernels.
fn kernel_sources() -> Result<BTreeMap<PathBuf, String>, String> {
    let entries = fs::read_dir("kernels").map_err(|error| format!("kernels: {error}"))?;
    let read = |path: PathBuf| match fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(error) => Err(format!("{}: {error}", path.display())),
    };
    entries.flatten().map(|entry| read(entry.path())).collect()
}

/// A line for each kernel of each architecture whose code nvcc has kept in a folder.
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

fn find_nvcc() -> Result<PathBuf, String> {
    let variable = |name: &str| env::var_os(name);
    let suffix = env::consts::EXE_SUFFIX;
    let found = (nvcc::candidates(variable, suffix).into_iter()).find(|path| path.is_file());
    let nvcc = found.ok_or(
        "The features `cuda`, `cust` and `raw-cuda` need NVIDIA's compiler, nvcc, and there is none in NVCC, CUDA_HOME/bin, CUDA_PATH/bin or PATH.\n\
         Install the CUDA toolkit (13.0 or later) and put its folder `bin` into PATH, or in a clone of the repository run:\n\
         eval \"$(scripts/cuda-toolkit)\"\n\
         Without these features nothing of CUDA is needed.",
    )?;
    // Else cudarc takes the newest version that it knows for the toolkit's.
    let for_cudarc = nvcc::in_path(variable, suffix);
    if env::var_os("CARGO_FEATURE_CUDA").is_some()
        && env::var_os("CUDARC_CUDA_VERSION").is_none()
        && !for_cudarc.iter().any(|path| path.is_file())
    {
        return Err(format!(
            "nvcc is {}, but is not in PATH, where the crate cudarc asks it for its version.\n\
             Add its folder to PATH, or set CUDARC_CUDA_VERSION, to 13000 for CUDA 13.0.",
            nvcc.display()
        ));
    }
    Ok(nvcc)
}

/// Runs a command that must succeed, and returns what it printed on stdout and stderr.
fn run(command: &mut Command) -> Result<(String, String), String> {
    let output =
        (command.output()).map_err(|error| format!("{command:?} cannot be started: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() {
        return Ok((stdout, stderr));
    }
    Err(format!("{command:?} failed:\n{stdout}{stderr}"))
}

fn out_dir() -> Result<PathBuf, String> {
    let out =
        env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo sets it for a build script")?;
    Ok(PathBuf::from(out))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
