//! No kernel spills registers or keeps arrays in local memory, on any target.

#[path = "../build/ptxas.rs"]
mod ptxas;

use ptxas::{Usage, usages};

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
