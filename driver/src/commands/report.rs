use std::path::Path;

use anyhow::Result;

use crate::{
    arguments::ReportArguments,
    console::print,
    output::{OutputFile, check_apart},
    report::{ReportedRun, page},
};

/// `msl report`
pub fn report(arguments: &ReportArguments) -> Result<()> {
    let inputs: Vec<&Path> = arguments.runs.iter().map(|run| run.as_path()).collect();
    check_apart("--output", &arguments.output, &inputs)?;
    let page = page(&ReportedRun::read_all(&arguments.runs)?)?;
    OutputFile::write_whole(&arguments.output, page.as_bytes())?;
    print(arguments.output.display())
}
