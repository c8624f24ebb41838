use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    commands::arguments::ReportArguments,
    console::print,
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
        let mut inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        // The page does not need the data, but the runs do.
        inputs.push(&run.data);
        check_apart("--output", &arguments.output, &inputs)?;
    }
    OutputFile::write_whole(&arguments.output, page.as_bytes())?;
    print(arguments.output.display())
}
