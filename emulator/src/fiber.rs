//! Threads of a block as fibers: stacks of their own, switched by hand.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::arch::naked_asm;
use std::ops::Range;

/// Enough for a kernel and for the emulator's own work on its behalf.
const STACK_BYTES: usize = 64 << 10;
/// Stacks that start at multiples of a power of two would fight for the same lines of the cache.
const STRIDE: usize = STACK_BYTES + 320;
/// Lies at the end of every stack; there are no guard pages.
const UNTOUCHED: u64 = 0x5bad_c0de_5bad_c0de;

/// The stacks of all fibers that are alive together.
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

    /// A fiber that will run `entry` when first switched to. `entry` must not return.
    pub(crate) fn fiber(&mut self, index: usize, entry: extern "C" fn() -> !) -> Fiber {
        assert!(
            (index + 1) * STRIDE <= self.layout.size(),
            "a fiber without a stack"
        );
        // SAFETY: the stack of this index lies within the allocation, by the assertion; the eight
        // words at its top are what `switch` pops: six registers, the address to go on at, and a
        // return address of 0 for unwinders.
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
    /// A place to save the flow of control that is running now.
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
        // SAFETY: the lowest word of a stack that `Stacks::fiber` wrote, and that lives as long as
        // the launch.
        unsafe { (self.lowest as *const u64).read() != UNTOUCHED }
    }

    /// Saves the flow that runs in `from`, and goes on with `to`.
    ///
    /// # Safety
    ///
    /// Both must be valid for the whole switch; `to` must be a fiber that is suspended, and no
    /// borrow that the code in `to` relies on may be broken by the code that runs now.
    pub(crate) unsafe fn switch(from: *mut Fiber, to: *const Fiber) {
        // SAFETY: the caller's promise; `switch` changes nothing but registers and the saved stack
        // pointer.
        unsafe { switch(&raw mut (*from).stack_pointer, (*to).stack_pointer) }
    }
}

/// Pushes what the System V calling convention has a function keep, and pops the same of the other
/// stack.
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
