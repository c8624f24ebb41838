//! The binary, run on small catalogues and, where it is there, on a real one.

mod bad_input;
mod books;
mod data;
mod devices;
mod end_to_end;
mod evaluating;
mod launchers;
mod new_tokens;
mod pretrained_models;
mod report;
mod run_folders;
mod run_inputs;
mod running;
mod semantic_ids;
mod tables;
