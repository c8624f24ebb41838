//! Compiles the kernels for the host, with every load and store instrumented by a call to the emulator.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The folders of the library's kernels and of the kernels of the emulator's own tests.
const SOURCES: [&str; 2] = ["../kernels", "faulty_kernels"];

/// Flags that keep accesses visible: loops must not become vector code or calls of `memset` before they are instrumented, and a
/// tail call would hide the site of its caller.
const KERNEL_FLAGS: &[&str] = &[
    "-fsanitize=thread",
    "-fno-tree-vectorize",
    "-fno-tree-loop-distribute-patterns",
    "-fno-optimize-sibling-calls",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
    "-Iinclude",
    "-I../kernels",
    "-include",
    "cuda_runtime.h",
];

/// Flags that forbid fused multiply-adds, so that results do not depend on the machine.
const RUNTIME_FLAGS: &[&str] = &["-ffp-contract=off"];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    println!("cargo::rerun-if-env-changed=CXX");
    for folder in ["include", "runtime"].iter().chain(&SOURCES) {
        println!("cargo::rerun-if-changed={folder}");
    }
    match compile() {
        Ok(()) => println!("cargo::rustc-cfg=emulated"),
        Err(reason) => {
            println!("cargo::warning=kernels are not emulated, their tests are skipped: {reason}");
            println!("cargo::rustc-env=EMULATOR_SKIPPED={reason}");
        }
    }
}

fn compile() -> Result<(), String> {
    let target = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if target != "x86_64" {
        return Err(format!(
            "the emulator switches between threads on x86_64 only, not on {target}"
        ));
    }
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        return Err(format!(
            "no C++ compiler '{compiler}' (set CXX, or install g++)"
        ));
    }
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|error| error.to_string())?);
    let mut objects = Vec::new();
    for source in ["runtime/hooks.cpp", "runtime/matrices.cpp"] {
        objects.push(object(&compiler, Path::new(source), RUNTIME_FLAGS, &out));
    }
    for source in SOURCES.iter().flat_map(|folder| kernel_sources(folder)) {
        objects.push(object(&compiler, &source, KERNEL_FLAGS, &out));
    }
    let archive = out.join("libemulated_kernels.a");
    let _ = fs::remove_file(&archive);
    run(Command::new("ar").arg("rcs").arg(&archive).args(&objects));
    println!("cargo::rustc-link-search=native={}", out.display());
    // The whole archive is linked, because no symbol refers to the kernels.
    println!("cargo::rustc-link-lib=static:+whole-archive=emulated_kernels");
    println!("cargo::rustc-link-lib=dylib=stdc++");
    Ok(())
}

fn kernel_sources(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut sources: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    sources
}

fn object(compiler: &str, source: &Path, flags: &[&str], out: &Path) -> PathBuf {
    let name = source.to_string_lossy().replace(['/', '.'], "_");
    let object = out.join(format!("{name}.o"));
    run(Command::new(compiler)
        .args([
            "-x",
            "c++",
            "-std=c++17",
            "-O2",
            "-g",
            "-fPIC",
            "-fno-exceptions",
            "-Wall",
            "-Wextra",
        ])
        .args(flags)
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(&object));
    object
}

/// Fails on a kernel that does not compile. A missing compiler is not an error.
fn run(command: &mut Command) {
    match command.output() {
        Ok(output) if output.status.success() => {
            for line in String::from_utf8_lossy(&output.stderr).lines() {
                println!("cargo::warning={line}");
            }
        }
        Ok(output) => panic!(
            "{command:?} failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("{command:?}: {error}"),
    }
}
