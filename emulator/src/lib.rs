//! Runs the CUDA kernels on the host.
