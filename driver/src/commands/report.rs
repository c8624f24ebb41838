use std::fs;

use anyhow::{Context, Result};

use crate::{
    arguments::ReportArguments,
    report::{ReportedRun, page},
};

/// `msl report`
pub fn report(arguments: &ReportArguments) -> Result<()> {
    let page = page(&ReportedRun::read_all(&arguments.runs)?)?;
    let output = &arguments.output;
    fs::write(output, page).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}", output.display());
    Ok(())
}
