//! Token sets in device memory, through candle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use candle_core::CudaDevice;
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream};

use super::stream::CandleStream;
use crate::backend::launch::TokenSetsView;
use crate::backend::launcher::driver_error;
use crate::{Result, TokenSets};

/// Token sets in device memory, which any number of host threads may use.
pub(crate) struct DeviceSets {
    /// `None` for the whole vocabulary.
    listed: Option<ListedSets>,
    vocabulary: u64,
}

/// Offsets and tokens that one host thread uploads and others read, each in its own stream.
///
/// candle's `Device::new_cuda` has the *per-thread* default stream: the same handle means another stream in each thread of the
/// host. cudarc orders streams by the events of its slices only in a context in which it has created a stream
/// (`CudaContext::is_managing_stream_synchronization`), which this one is not, and never if the caller has disabled event
/// tracking. Without further care, a second thread could read the sets before the upload of the first is done, and the last
/// owner could free them, in its own stream, while a kernel of another thread still reads them. Each loss that shares the sets
/// is used correctly, by one thread, so this type must order the streams itself:
///
/// - It records an event after the upload, for which every other stream waits.
/// - If a thread other than the uploading one has read the sets or drops them, it synchronises the context before they are freed.
///   This happens at the end of a loss's life, not in a step.
///
/// `Device::new_cuda_with_stream` has one stream for all threads, which needs none of this.
struct ListedSets {
    offsets_and_tokens: [CudaSlice<u32>; 2],
    /// The event after the upload.
    uploaded: CudaEvent,
    /// Whether the upload is known to be done, so that launches need not wait for it.
    is_uploaded: AtomicBool,
    uploaded_by: ThreadId,
    /// Whether another thread has read the sets.
    is_shared: AtomicBool,
}

impl ListedSets {
    fn new(device: &CudaDevice, offsets: &[u32], tokens: &[u32]) -> Result<Self> {
        let offsets_and_tokens = [upload(device, offsets)?, upload(device, tokens)?];
        let uploaded = device.cuda_stream().record_event(None);
        Ok(Self {
            offsets_and_tokens,
            uploaded: uploaded.map_err(driver_error)?,
            is_uploaded: AtomicBool::new(false),
            uploaded_by: std::thread::current().id(),
            is_shared: AtomicBool::new(false),
        })
    }

    /// Orders what the calling thread issues next to this stream after the upload.
    fn order(&self, stream: &CudaStream) {
        if is_another(stream, self.uploaded_by) {
            self.is_shared.store(true, Ordering::Relaxed);
        }
        if self.is_uploaded.load(Ordering::Acquire) {
            return;
        }
        if self.uploaded.is_complete() {
            self.is_uploaded.store(true, Ordering::Release);
            return;
        }
        // The error is recorded, and the launch that follows reports it, as with the events of cudarc's slices.
        stream.context().record_err(stream.wait(&self.uploaded));
    }
}

impl Drop for ListedSets {
    fn drop(&mut self) {
        // Relaxed is enough: every thread that read the sets held a reference to them, and dropping the last reference
        // synchronises with the drops of the others.
        let stream = self.offsets_and_tokens[0].stream();
        if self.is_shared.load(Ordering::Relaxed) || is_another(stream, self.uploaded_by) {
            let context = stream.context();
            context.record_err(context.synchronize());
        }
    }
}

/// Returns whether the handle of this stream means another stream in the calling thread than in `thread`.
pub(crate) fn is_another(stream: &CudaStream, thread: ThreadId) -> bool {
    // CU_STREAM_PER_THREAD
    stream.cu_stream() as usize == 2 && std::thread::current().id() != thread
}

impl DeviceSets {
    pub fn new(device: &CudaDevice, sets: &TokenSets) -> Result<Self> {
        let listed = (sets.to_upload()?)
            .map(|(offsets, tokens)| ListedSets::new(device, offsets, tokens))
            .transpose()?;
        Ok(Self {
            listed,
            vocabulary: u64::from(sets.max_token()) + 1,
        })
    }

    /// Returns the addresses of the sets, for launches that the calling thread issues next to `stream`.
    pub fn view<'a>(&'a self, stream: &mut CandleStream<'a>) -> TokenSetsView {
        let [offsets, tokens] = match &self.listed {
            Some(listed) => {
                listed.order(stream.cuda_stream());
                let [offsets, tokens] = &listed.offsets_and_tokens;
                [stream.read(offsets), stream.read(tokens)]
            }
            None => [None; 2],
        };
        TokenSetsView {
            offsets,
            tokens,
            vocabulary: self.vocabulary,
        }
    }
}

fn upload(device: &CudaDevice, values: &[u32]) -> Result<CudaSlice<u32>> {
    // The driver does not allocate buffers of 0 bytes.
    let values = if values.is_empty() { &[0] } else { values };
    Ok(device.clone_htod(values)?)
}
