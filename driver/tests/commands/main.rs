//! The binary, run on small catalogues and, where it is there, on a real one.

mod bad_input;
mod books;
mod end_to_end;
mod report;
mod running;
