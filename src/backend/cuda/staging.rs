//! Uploads from page-locked memory, for which the host does not wait.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtrMut, DriverError};
use cudarc::driver::{PinnedHostSlice, result};

/// Page-locked buffers of a context, taken in turn.
#[derive(Default)]
pub(super) struct Staging {
    buffers: Vec<Buffer>,
    next: usize,
}

struct Buffer {
    words: PinnedHostSlice<u32>,
    /// The event behind the last copy out of the buffer.
    copied: CudaEvent,
}

impl Staging {
    /// How many copies may be under way before the host waits for the oldest.
    const BUFFERS: usize = 8;
    const LEAST_WORDS: usize = 1 << 16;

    /// Issues one copy of these tables, one behind the other, to the beginning of `to`.
    pub fn upload(
        &mut self,
        stream: &Arc<CudaStream>,
        tables: &[&[u32]],
        to: &mut CudaSlice<u32>,
    ) -> Result<(), DriverError> {
        let length = tables
            .iter()
            .map(|table| table.len())
            .sum::<usize>()
            .min(to.len());
        let buffer = self.buffer(stream.context(), length)?;
        buffer.copied.synchronize()?;
        let words = buffer.words.as_mut_slice()?;
        let mut end = 0;
        for table in tables {
            words[end..end + table.len()].copy_from_slice(table);
            end += table.len();
        }
        let (address, _written) = to.device_ptr_mut(stream);
        // SAFETY: `to` has as many words, and the buffer is not written again before `copied`.
        unsafe { result::memcpy_htod_async(address, &words[..length], stream.cu_stream()) }?;
        buffer.copied.record(stream)
    }

    /// Returns the next buffer, of at least so many words.
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
            .is_none_or(|buffer| buffer.words.len() < length)
        {
            let words = length.next_power_of_two().max(Self::LEAST_WORDS);
            let buffer = Buffer {
                // SAFETY: words are written before a copy reads them.
                words: unsafe { context.alloc_pinned(words) }?,
                copied: context.new_event(None)?,
            };
            // One that was too small waits for its last copy where it is dropped.
            match self.buffers.get_mut(index) {
                Some(place) => {
                    place.copied.synchronize()?;
                    *place = buffer;
                }
                None => self.buffers.push(buffer),
            }
        }
        Ok(&mut self.buffers[index])
    }
}
