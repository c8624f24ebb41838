use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    commands::arguments::ReportArguments,
    console::print_path,
    io::output::OutputFile,
    report::{ReportedRun, page},
    run::{apart::check_apart, layout::run_files},
};

/// Runs `msl report`.
pub fn report(arguments: &ReportArguments) -> Result<()> {
    let runs = ReportedRun::read_all(&arguments.runs)?;
    let page = page(&runs)?;
    for run in &runs {
        let files = run_files(&run.path)?;
        // The page does not need the data, but the runs do.
        let inputs = files.iter().chain(&run.inputs);
        let inputs: Vec<&Path> = inputs.map(PathBuf::as_path).collect();
        check_apart("--output", &arguments.output, &inputs)?;
    }
    let mut output = OutputFile::create(&arguments.output)?;
    (output.write_all(page.as_bytes()))
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    print_path(output.finish_and_name()?)
}
