//! The parts of `msl`: data, prompts, a small Llama-style model, training and evaluation with the losses of
//! `candle-trie`.

// Prints with `console::print`, which is no panic where standard output is closed or full.
#![deny(clippy::print_stdout)]

/// Prints on standard error as the macro of the standard library does, without its panic where standard error is
/// closed.
macro_rules! eprintln {
    ($($argument:tt)*) => {
        $crate::console::note(format_args!($($argument)*))
    };
}

pub mod commands;
pub mod console;
pub mod data;
pub mod evaluate;
pub mod io;
pub mod model;
pub mod ops;
pub mod random;
pub mod report;
pub mod run;
pub mod train;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// The modules from the lowest to the highest.
    const ORDER: [&str; 11] = [
        "io", "console", "random", "data", "ops", "model", "train", "evaluate", "run", "report",
        "commands",
    ];

    /// Collects `MODULE imports HIGHER` of the files of a module.
    fn wrong_imports(path: &Path, place: usize, wrong: &mut Vec<String>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                wrong_imports(&entry.unwrap().path(), place, wrong);
            }
            return;
        }
        let text = fs::read_to_string(path).unwrap_or_default();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        // Imports are either `crate::name` or a line of `use crate::{ … }`, which is indented once.
        for higher in &ORDER[place + 1..] {
            let inside = format!("\n    {higher}::");
            if code.contains(&format!("crate::{higher}")) || code.contains(&inside) {
                wrong.push(format!("{} imports {higher}", path.display()));
            }
        }
    }

    #[test]
    fn a_module_imports_lower_modules_alone() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut wrong = Vec::new();
        for (place, name) in ORDER.iter().enumerate() {
            for path in [folder.join(name), folder.join(format!("{name}.rs"))] {
                if path.exists() {
                    wrong_imports(&path, place, &mut wrong);
                }
            }
        }
        assert_eq!(wrong, Vec::<String>::new());
    }
}
