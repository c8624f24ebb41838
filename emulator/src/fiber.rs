//! Fibers, which run the threads of a block: each has its own stack, and control switches between them explicitly.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
#[cfg(target_arch = "x86_64")]
use std::arch::naked_asm;
use std::ops::Range;

/// The size of a stack, which is enough for a kernel and the emulator's hooks.
const STACK_BYTES: usize = 64 << 10;
/// The distance between two stacks. If it were a power of two, all stacks would map to the same sets of the cache.
const STRIDE: usize = STACK_BYTES + 320;
/// A canary at the end of every stack, by which an overflow is found. There are no guard pages.
const UNTOUCHED: u64 = 0x5bad_c0de_5bad_c0de;

/// The stacks of all fibers that exist at the same time.
pub(crate) struct Stacks {
    base: *mut u8,
    layout: Layout,
}

/// A suspended flow of control.
#[derive(Clone, Copy)]
pub(crate) struct Fiber {
    stack_pointer: *mut u8,
    lowest: usize,
}

impl Stacks {
    pub(crate) fn new(count: usize) -> Self {
        let layout =
            Layout::from_size_align(count.max(1) * STRIDE, 64).expect("the stacks fit into memory");
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        Self { base, layout }
    }

    /// Makes a fiber that runs `entry` when it is first switched to. `entry` must not return.
    pub(crate) fn fiber(&mut self, index: usize, entry: extern "C" fn() -> !) -> Fiber {
        assert!(
            (index + 1) * STRIDE <= self.layout.size(),
            "a fiber without a stack"
        );
        // SAFETY: the stack of this index is inside the allocation, by the assertion. The eight words at its top are what
        // `switch` pops: six registers, the address at which to continue, and a return address of 0 for unwinders.
        unsafe {
            let lowest = self.base.add(index * STRIDE);
            lowest.cast::<u64>().write(UNTOUCHED);
            let frame = lowest.add(STACK_BYTES).cast::<usize>().sub(8);
            frame.write_bytes(0, 8);
            frame.add(6).write(entry as usize);
            Fiber {
                stack_pointer: frame.cast(),
                lowest: lowest as usize,
            }
        }
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base, self.layout) }
    }
}

impl Fiber {
    /// Makes an empty fiber, in which `switch` saves the running flow of control.
    pub(crate) const fn running() -> Self {
        Self {
            stack_pointer: std::ptr::null_mut(),
            lowest: 0,
        }
    }

    pub(crate) fn stack(&self) -> Range<usize> {
        self.lowest..self.lowest + STACK_BYTES
    }

    pub(crate) fn overflowed(&self) -> bool {
        // SAFETY: `Stacks::fiber` wrote the lowest word of this stack, and the stack lives as long as the launch.
        unsafe { (self.lowest as *const u64).read() != UNTOUCHED }
    }

    /// Saves the running flow of control in `from`, and continues with `to`.
    ///
    /// # Safety
    ///
    /// Both must be valid during the switch, and `to` must be suspended. The running code must not break a borrow that the code
    /// in `to` relies on.
    pub(crate) unsafe fn switch(from: *mut Fiber, to: *const Fiber) {
        // SAFETY: the caller's promise. `switch` only changes registers and the saved stack pointer.
        unsafe { switch(&raw mut (*from).stack_pointer, (*to).stack_pointer) }
    }
}

/// Pushes the callee-saved registers of the System V calling convention, switches stacks, and pops those of the other stack.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(save: *mut *mut u8, load: *mut u8) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Never called, as no kernel is emulated on other architectures.
#[cfg(not(target_arch = "x86_64"))]
unsafe extern "C" fn switch(_: *mut *mut u8, _: *mut u8) {
    std::process::abort()
}
