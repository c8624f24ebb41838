//! Asynchronous uploads from page-locked memory.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};

/// A ring of page-locked buffers of a context.
#[derive(Default)]
pub(super) struct Staging {
    buffers: Vec<Buffer>,
    next: usize,
}

struct Buffer {
    elements: PinnedHostSlice<u32>,
    /// The event after the last copy from the buffer.
    copied: CudaEvent,
}

impl Staging {
    /// How many copies may be in flight before the host waits for the oldest.
    const BUFFERS: usize = 8;
    const LEAST_ELEMENTS: usize = 1 << 16;

    /// Issues one copy of the concatenated tables to the address `to`.
    ///
    /// # Safety
    /// That of [`Launcher::upload`](super::Launcher::upload).
    pub unsafe fn upload(
        &mut self,
        stream: &Arc<CudaStream>,
        tables: &[&[u32]],
        to: u64,
    ) -> Result<(), DriverError> {
        let length = tables.iter().map(|table| table.len()).sum();
        let buffer = self.buffer(stream.context(), length)?;
        buffer.copied.synchronize()?;
        let elements = buffer.elements.as_mut_slice()?;
        let mut end = 0;
        for table in tables {
            elements[end..end + table.len()].copy_from_slice(table);
            end += table.len();
        }
        // SAFETY: the caller's promise, and the buffer is not written again before `copied`.
        unsafe { result::memcpy_htod_async(to, &elements[..length], stream.cu_stream()) }?;
        buffer.copied.record(stream)
    }

    /// Returns the next buffer of the ring, with at least `length` elements.
    fn buffer(
        &mut self,
        context: &Arc<CudaContext>,
        length: usize,
    ) -> Result<&mut Buffer, DriverError> {
        self.next = (self.next + 1) % Self::BUFFERS;
        let index = self.next.min(self.buffers.len());
        if self
            .buffers
            .get(index)
            .is_none_or(|buffer| buffer.elements.len() < length)
        {
            let elements = length.next_power_of_two().max(Self::LEAST_ELEMENTS);
            let buffer = Buffer {
                // SAFETY: elements are written before a copy reads them.
                elements: unsafe { context.alloc_pinned(elements) }?,
                copied: context.new_event(None)?,
            };
            // A buffer that is too small is replaced once its last copy is done.
            match self.buffers.get_mut(index) {
                Some(old) => {
                    old.copied.synchronize()?;
                    *old = buffer;
                }
                None => self.buffers.push(buffer),
            }
        }
        Ok(&mut self.buffers[index])
    }
}
