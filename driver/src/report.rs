//! Writes the page of `msl report`, which compares runs in one HTML file that needs no other file.

mod charts;
mod page;
mod paired;
mod recommending;
mod run;
mod training;

pub use page::page;
pub use run::ReportedRun;
