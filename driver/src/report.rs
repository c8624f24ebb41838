//! The page of `msl report`: runs beside each other, in one HTML file that needs nothing else.

mod charts;
mod page;
mod paired;
mod recommending;
mod run;
mod training;

pub use page::page;
pub use run::ReportedRun;
