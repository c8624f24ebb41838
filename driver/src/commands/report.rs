use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    arguments::ReportArguments,
    console::print,
    layout::run_files,
    output::{OutputFile, check_apart},
    report::{ReportedRun, page},
};

/// `msl report`
pub fn report(arguments: &ReportArguments) -> Result<()> {
    let page = page(&ReportedRun::read_all(&arguments.runs)?)?;
    for run in &arguments.runs {
        let files = run_files(run)?;
        let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        check_apart("--output", &arguments.output, &inputs)?;
    }
    OutputFile::write_whole(&arguments.output, page.as_bytes())?;
    print(arguments.output.display())
}
