//! What `nvcc -Xptxas -v` says of each kernel and target.

/// The resources of one kernel on one target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(dead_code)] // The build reads names alone.
pub struct Usage {
    /// The kernel's name.
    pub kernel: String,
    /// `sm_90`, for example.
    pub target: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Local memory of a thread: arrays that found no place in registers.
    pub stack_bytes: u32,
    /// Bytes that are put aside for want of registers.
    pub spilled_bytes: u32,
    /// The size of its machine code; 0 where there is no line of [`code_line`]'s.
    pub code_bytes: u32,
}

const CODE: &str = "candle-trie info: code of ";

/// A line that the build adds to the compiler's words.
#[allow(dead_code)] // For the build.
pub fn code_line(kernel: &str, target: &str, bytes: u64) -> String {
    format!("{CODE}'{kernel}' for '{target}': {bytes} bytes of code\n")
}

/// Every kernel on every target, in the order of the text.
pub fn usages(text: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in text.lines() {
        let quoted = |names: &str| {
            let mut quoted = names.split('\'').skip(1).step_by(2).map(str::to_string);
            Some((quoted.next()?, quoted.next()?))
        };
        if let Some((_, names)) = line.split_once("Compiling entry function ") {
            if let Some((kernel, target)) = quoted(names) {
                usages.push(Usage {
                    kernel,
                    target,
                    registers: 0,
                    stack_bytes: 0,
                    spilled_bytes: 0,
                    code_bytes: 0,
                });
            }
        } else if let Some(names) = line.strip_prefix(CODE) {
            let named = quoted(names);
            let same = |usage: &&mut Usage| {
                named.as_ref() == Some(&(usage.kernel.clone(), usage.target.clone()))
            };
            if let Some(usage) = usages.iter_mut().find(same) {
                usage.code_bytes = before(line, " bytes of code");
            }
        } else if let Some(usage) = usages.last_mut() {
            usage.registers += before(line, " registers");
            usage.stack_bytes += before(line, " bytes stack frame");
            usage.spilled_bytes +=
                before(line, " bytes spill stores") + before(line, " bytes spill loads");
        }
    }
    usages
}

/// Returns the name of each kernel of a source once, sorted.
///
/// A source whose kernels nvcc does not name is an error, as the library would look for them in vain
/// when it is to launch them.
#[allow(dead_code)] // For the build.
pub fn kernel_names(source: &str, text: &str) -> Result<Vec<String>, String> {
    let mut names: Vec<_> = usages(text).into_iter().map(|usage| usage.kernel).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(format!(
            "nvcc compiled {source} and named no kernel: its output has no line with \
             \"Compiling entry function 'NAME' for 'sm_NN'\", from which the build takes the kernels' names. \
             Either the source defines no KERNEL, or this nvcc words the output of `-Xptxas -v` differently \
             or withholds it (CUDA 13.0 is known to work). The output was:\n{text}"
        ));
    }
    Ok(names)
}

/// The number that stands before some words; 0 where the words are missing.
fn before(line: &str, words: &str) -> u32 {
    let number = |(head, _): (&str, &str)| head.rsplit([' ', ',']).next()?.parse().ok();
    line.split_once(words).and_then(number).unwrap_or_default()
}
