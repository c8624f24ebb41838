//! Token sets in the memory of a device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;

use candle_core::CudaDevice;
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream};

use super::driver_error;
use super::stream::CandleStream;
use crate::backend::launch::TokenSetsView;
use crate::{Result, TokenSets};

/// Token sets in the memory of a device, which any number of host threads may use.
pub(crate) struct DeviceSets {
    /// `None` for the whole vocabulary.
    listed: Option<ListedSets>,
    vocabulary: u64,
}

/// Offsets and tokens that one host thread uploads and others read, each in its stream.
///
/// The stream of candle's `Device::new_cuda` is the *per-thread* default stream: one handle, which
/// means another stream in each thread of the host. cudarc orders streams by the events of its slices
/// only in a context that it has created a stream in (`CudaContext::is_managing_stream_synchronization`),
/// which this one is not, and not at all where the caller has disabled event tracking. Nothing then keeps
/// a second thread from reading these sets before the first thread's copy of them is done, nor the last
/// owner from freeing them, in its own stream, while another thread's kernel still reads. The losses that
/// share the sets are each used rightly, by one thread, so the order is this type's business:
///
/// - an event behind the upload, which every other stream waits for;
/// - where another thread than the uploading one has read or drops the sets, a wait for the whole context
///   before they are freed. That is at the end of a loss's life, not of a step.
///
/// The stream of `Device::new_cuda_with_stream` is one for all threads, and orders all of this by itself.
struct ListedSets {
    offsets_and_tokens: [CudaSlice<u32>; 2],
    /// The event behind the upload.
    uploaded: CudaEvent,
    /// Whether the upload is known to be done, so that no launch need wait for it.
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

    /// Keeps what the calling thread issues next in this stream behind the upload.
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
        // As cudarc treats the events of its slices: the launch that follows reports the error.
        stream.context().record_err(stream.wait(&self.uploaded));
    }
}

impl Drop for ListedSets {
    fn drop(&mut self) {
        // Relaxed is enough: whoever read the sets held a share of them, and the last to let go of its own
        // sees what the others did before.
        let stream = self.offsets_and_tokens[0].stream();
        if self.is_shared.load(Ordering::Relaxed) || is_another(stream, self.uploaded_by) {
            let context = stream.context();
            context.record_err(context.synchronize());
        }
    }
}

/// Returns whether this stream is another here than it is in that thread of the host.
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

    /// Returns where the sets are, for a launch that the calling thread issues next in `stream`.
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
    // A device has no buffer without elements.
    let values = if values.is_empty() { &[0] } else { values };
    Ok(device.clone_htod(values)?)
}
