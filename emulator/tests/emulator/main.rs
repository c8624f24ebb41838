//! Every kind of fault is reported, with its line, by kernels that have it, and sound kernels are left alone.

mod barriers;
mod copies;
mod faulty_kernels;
mod matrices;
mod matrix_layouts;
mod memory;
mod numbers;
mod races;
mod schedule;
mod speed;
mod sums;
mod traffic;
