//! The loss over hidden states × head against the f64 reference over their product, and against the
//! dense operation, in every option that the dense operation has.

mod added_rows;
mod batch;
mod heads;
mod host;
mod limits;
mod options;
