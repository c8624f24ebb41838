//! What the build script asks of nvcc and understands of its answers. With the feature `cuda`: no kernel spills registers or keeps
//! arrays in local memory, on any target.

#[path = "../build/nvcc.rs"]
#[allow(dead_code)]
mod nvcc;
#[path = "../build/ptxas.rs"]
mod ptxas;

use std::ffi::OsString;
use std::path::PathBuf;

use ptxas::{Usage, usages};

/// What `nvcc --list-gpu-arch` says in CUDA 13.0.
const CUDA_13: &str = "compute_75\ncompute_80\ncompute_86\ncompute_87\ncompute_88\ncompute_89\ncompute_90\n\
    compute_100\ncompute_110\ncompute_103\ncompute_120\ncompute_121\n";
/// And in CUDA 12.4.
const CUDA_12_4: &str =
    "compute_50\ncompute_75\ncompute_80\ncompute_86\ncompute_87\ncompute_89\ncompute_90\n";

/// The names of the chosen architectures and of the unknown ones.
fn selected(wanted: Option<&str>, listed: &str) -> Result<(String, String), String> {
    nvcc::select(wanted, listed).map(|selection| {
        (
            nvcc::listing(&selection.architectures),
            nvcc::listing(&selection.unknown),
        )
    })
}

#[test]
fn an_old_toolkit_compiles_for_the_architectures_that_it_knows() {
    let all = selected(None, CUDA_13).unwrap();
    assert_eq!(all, ("80, 86, 89, 90, 100, 120".into(), String::new()));
    let old = selected(None, CUDA_12_4).unwrap();
    assert_eq!(old, ("80, 86, 89, 90".into(), "100, 120".into()));
}

#[test]
fn named_architectures_may_have_features() {
    let (chosen, _) = selected(Some("100f, 90a,90 90"), CUDA_13).unwrap();
    assert_eq!(chosen, "90, 90a, 100f");
}

#[test]
fn an_architecture_that_cannot_be_compiled_for_is_refused_with_what_can() {
    for (wanted, listed, said) in [
        (
            "90,100f",
            CUDA_12_4,
            "does not know the architecture 100f. It knows 50, 75, 80, 86, 87, 89, 90.",
        ),
        (
            "90,sm_90",
            CUDA_13,
            "'sm_90' is not an architecture such as 90, 90a or 100f",
        ),
        ("90af", CUDA_13, "'90af' is not an architecture"),
        (
            "75",
            CUDA_13,
            "the kernels need architecture 80 (Ampere) or newer, not 75",
        ),
        (" ,", CUDA_13, "names no architecture"),
        ("90", "nvcc fatal : Unknown option", "lists no architecture"),
    ] {
        let reason = selected(Some(wanted), listed).unwrap_err();
        assert!(reason.contains(said), "{wanted}: {reason}");
    }
}

/// PTX of the oldest and the newest serves all other GPUs; that of an architecture with features serves none.
#[test]
fn ptx_is_made_of_architectures_without_features_alone() {
    let targets =
        |wanted| nvcc::targets(&nvcc::select(Some(wanted), CUDA_13).unwrap().architectures);
    assert_eq!(
        targets("80,90,100f"),
        [
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_90,code=sm_90",
            "-gencode=arch=compute_100f,code=sm_100f",
            "-gencode=arch=compute_80,code=compute_80",
            "-gencode=arch=compute_90,code=compute_90",
        ]
    );
    assert_eq!(targets("90a"), ["-gencode=arch=compute_90a,code=sm_90a"]);
    assert_eq!(targets("90").len(), 2);
}

#[test]
fn nvcc_is_looked_for_under_the_name_that_executables_have() {
    let path = std::env::join_paths(["first", "second"]).unwrap();
    let variable = |name: &str| match name {
        "NVCC" => Some(OsString::from("named")),
        "CUDA_PATH" => Some("toolkit".into()),
        "PATH" => Some(path.clone()),
        _ => None,
    };
    let expected: Vec<_> = [
        "named",
        "toolkit/bin/nvcc.exe",
        "first/nvcc.exe",
        "second/nvcc.exe",
    ]
    .map(PathBuf::from)
    .into();
    assert_eq!(nvcc::candidates(variable, ".exe"), expected);
    assert_eq!(nvcc::in_path(variable, "")[1], PathBuf::from("second/nvcc"));
}

#[test]
fn headers_of_the_crate_are_told_from_those_of_the_toolkit() {
    let source =
        "#include <cuda_fp16.h>\n  #include \"reduce.cuh\" // sums\n#include \"dense.cuh\"\n";
    assert_eq!(nvcc::included(source), ["reduce.cuh", "dense.cuh"]);
}

/// What nvcc 13.0 said of a kernel that indexes a local array, with 24 registers to do it in, and
/// of one that is sound.
const SPILLING: &str = "\
ptxas info    : Overriding maximum register limit 256 for 'spilling' with  24 of maxrregcount option
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spilling' for 'sm_90'
ptxas info    : Function properties for spilling
    272 bytes stack frame, 144 bytes spill stores, 148 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 272 bytes cumulative stack size
ptxas info    : Compile time = 14.704 ms
ptxas info    : Compiling entry function 'sound' for 'sm_120'
ptxas info    : Function properties for sound
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 15 registers, used 1 barriers
candle-trie info: code of 'sound' for 'sm_120': 1408 bytes of code
candle-trie info: code of 'spilling' for 'sm_90': 768 bytes of code
";

fn in_local_memory(text: &str) -> Vec<Usage> {
    usages(text)
        .into_iter()
        .filter(|usage| usage.stack_bytes > 0 || usage.spilled_bytes > 0)
        .collect()
}

#[test]
fn spills_and_frames_are_seen() {
    let spilling = Usage {
        kernel: "spilling".into(),
        target: "sm_90".into(),
        registers: 24,
        stack_bytes: 272,
        spilled_bytes: 292,
        code_bytes: 768,
    };
    assert_eq!(in_local_memory(SPILLING), [spilling]);
    assert_eq!(usages(SPILLING).len(), 2);
    let sound = &usages(SPILLING)[1];
    assert_eq!((sound.registers, sound.code_bytes), (15, 1408));
    let line = ptxas::code_line("sound", "sm_120", 1408);
    assert!(SPILLING.contains(&line), "{line}");
    assert_eq!(
        ptxas::kernel_names("kernels/both.cu", SPILLING).unwrap(),
        ["sound", "spilling"]
    );
}

/// The library finds kernels by these names: without them a build would succeed, and the first
/// launch fail.
#[test]
fn a_source_without_named_kernels_fails_the_build() {
    let other_words = SPILLING.replace("Compiling entry function", "Compiling kernel");
    for silent in ["", "ptxas info    : 0 bytes gmem\n", &other_words] {
        let reason = ptxas::kernel_names("kernels/silent.cu", silent).unwrap_err();
        assert!(
            reason.contains("kernels/silent.cu and named no kernel"),
            "{reason}"
        );
        assert!(reason.ends_with(silent), "{reason}");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn no_kernel_uses_local_memory() {
    let text = include_str!(env!("CANDLE_TRIE_PTXAS"));
    let usages = usages(text);
    assert!(!usages.is_empty(), "ptxas said nothing:\n{text}");
    assert!(
        (usages.iter()).all(|usage| usage.registers > 0 && usage.code_bytes > 0),
        "a form of words that is not understood:\n{text}"
    );
    assert_eq!(in_local_memory(text), []);
}
