//! Proofs of the loss over logits: its gradients, precision, layouts, limits, refusals.

mod batch;
mod bear;
mod determinism;
mod gradients;
mod layouts;
mod limits;
mod micro_batches;
mod precision;
mod refusals;
mod settings;
