//! The kernels that are compiled in.

use std::ffi::{CStr, c_char, c_void};

/// Mirrors `emulator::Kernel` of include/kernel_list.h.
#[repr(C)]
pub(crate) struct Kernel {
    name: *const c_char,
    pub(crate) params_bytes: u32,
    pub(crate) threads: u32,
    /// The smallest number of blocks of `threads` threads for which a multiprocessor has registers.
    pub(crate) blocks: u32,
    pub(crate) enter: unsafe extern "C" fn(*const c_void),
    next: *const Kernel,
}

#[cfg(emulated)]
unsafe extern "C" {
    safe fn emulator_first_kernel() -> *const Kernel;
}

#[cfg(not(emulated))]
fn emulator_first_kernel() -> *const Kernel {
    std::ptr::null()
}

impl Kernel {
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        // SAFETY: the list consists of statics, is complete before `main`, and ends with a null pointer.
        let follow = |kernel: *const Self| unsafe { kernel.as_ref() };
        std::iter::successors(follow(emulator_first_kernel()), move |kernel| {
            follow(kernel.next)
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        // SAFETY: the name is a string literal in the kernel's source.
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or("?")
    }

    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        Self::all().find(|kernel| kernel.name() == name)
    }
}
