//! Reads catalogues and the choices of their users, and turns them into prompts, tokens and batches.

pub mod arguments;
pub mod batch;
pub mod catalogue;
pub mod catalogue_shape;
pub mod dataset;
pub mod examples;
pub mod files;
pub mod interactions;
pub mod json_format;
pub mod paper_format;
pub mod prompt;
pub mod responses;
pub mod rows;
pub mod semantic_ids;
pub mod summary;
pub mod synthetic;
pub mod table;
pub mod table_items;
pub mod targets;
pub mod tokenizer;
