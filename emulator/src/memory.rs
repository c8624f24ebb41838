//! Device memory: named buffers with red zones around them and shadow memory for each.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use crate::fault::Fault;
use crate::shadow::Shadow;

/// The size of the red zones on either side of a buffer, in bytes. They are never touched, so they take no physical memory.
const RED_ZONE: usize = 1 << 20;
/// The alignment of `cudaMalloc`, in bytes.
const ALIGNMENT: usize = 256;

/// The memory of an emulated device.
#[derive(Default)]
pub struct Memory {
    /// The buffers by address.
    buffers: Vec<Region>,
    freed: Vec<Region>,
    last_found: usize,
}

/// The host's handle of a device buffer.
#[derive(Clone, Copy, Debug)]
pub struct Buffer<T> {
    address: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// Returns the address of the buffer, for parameters of a kernel.
    pub fn address(&self) -> u64 {
        self.address as u64
    }

    /// Returns the address of a larger buffer of which this one is the part that begins at element `first`. Tests use it for
    /// offsets for which there is not enough memory.
    pub fn address_as_window(&self, first: u64) -> u64 {
        self.address()
            .wrapping_sub(first.wrapping_mul(size_of::<T>() as u64))
    }

    /// Returns the number of its elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A region of device memory: a buffer, or the shared memory of a block.
pub(crate) struct Region {
    pub(crate) name: String,
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    pub(crate) shadow: Shadow,
    allocation: *mut u8,
    layout: Layout,
}

impl Region {
    pub(crate) fn new(name: &str, bytes: usize, written: bool) -> Self {
        let layout = Layout::from_size_align(bytes + 2 * RED_ZONE, ALIGNMENT)
            .expect("the buffer fits into memory");
        // SAFETY: the layout is not empty.
        let allocation = unsafe { alloc_zeroed(layout) };
        if allocation.is_null() {
            handle_alloc_error(layout);
        }
        let shadow = Shadow::new(bytes, written);
        Self {
            name: name.into(),
            start: allocation as usize + RED_ZONE,
            bytes,
            shadow,
            allocation,
            layout,
        }
    }

    pub(crate) fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.start) < self.bytes
    }

    /// Returns the range of the region that begins at an address.
    pub(crate) fn range(&self, address: usize, bytes: usize) -> Range<usize> {
        let offset = address - self.start;
        offset..offset + bytes
    }

    pub(crate) fn read<const BYTES: usize>(&mut self, address: usize) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let range = self.range(address, BYTES);
        bytes.copy_from_slice(&self.content()[range]);
        bytes
    }

    pub(crate) fn write(&mut self, address: usize, bytes: &[u8]) {
        let range = self.range(address, bytes.len());
        self.content()[range].copy_from_slice(bytes);
    }

    fn content(&mut self) -> &mut [u8] {
        // SAFETY: the slice is inside the allocation, which this borrow keeps alive. Kernels write to it only while a launch
        // borrows `Memory`.
        unsafe { std::slice::from_raw_parts_mut(self.allocation.add(RED_ZONE), self.bytes) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.allocation, self.layout) }
    }
}

impl Memory {
    /// Makes a memory without buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a buffer that holds `values`.
    pub fn upload<T: Pod>(&mut self, name: &str, values: &[T]) -> Buffer<T> {
        let mut region = Region::new(name, size_of_val(values), true);
        region
            .content()
            .copy_from_slice(bytemuck::cast_slice(values));
        self.add(region, values.len())
    }

    /// Makes an uninitialised buffer.
    pub fn allocate<T: Pod>(&mut self, name: &str, len: usize) -> Buffer<T> {
        self.add(Region::new(name, len * size_of::<T>(), false), len)
    }

    /// Frees the buffer that begins at an address. Its memory is not reused, so later accesses to it are faults.
    pub fn free(&mut self, address: u64) {
        let freed = self.region_index(address as usize);
        self.freed.push(self.buffers.remove(freed));
        self.last_found = 0;
    }

    /// Reads a buffer. An uninitialised element is a fault.
    pub fn download<T: Pod>(&mut self, buffer: Buffer<T>) -> Result<Vec<T>, Fault> {
        let region = self.region_at(buffer.address);
        if let Some(byte) = region.shadow.never_written() {
            return Err(Fault::OutputNeverWritten {
                buffer: region.name.clone(),
                element: byte / size_of::<T>(),
            });
        }
        let mut values = vec![T::zeroed(); buffer.len];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(region.content());
        Ok(values)
    }

    /// Reads `count` elements at an address, like a library that the host calls between launches. An uninitialised element is a
    /// fault.
    pub fn read<T: Pod>(&mut self, address: u64, count: usize) -> Result<Vec<T>, Fault> {
        let (region, range) = self.part::<T>(address, count);
        if !region.shadow.is_written(&range) {
            return Err(Fault::OutputNeverWritten {
                buffer: region.name.clone(),
                element: range.start / size_of::<T>(),
            });
        }
        let mut values = vec![T::zeroed(); count];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(&region.content()[range]);
        Ok(values)
    }

    /// Writes elements at an address, like a library that the host calls between launches.
    pub fn write<T: Pod>(&mut self, address: u64, values: &[T]) {
        let (region, range) = self.part::<T>(address, values.len());
        region.shadow.write_by_host(&range);
        region.content()[range].copy_from_slice(bytemuck::cast_slice(values));
    }

    /// Returns the buffer that contains these elements, and their range in it.
    fn part<T>(&mut self, address: u64, count: usize) -> (&mut Region, Range<usize>) {
        let index = self
            .find(address as usize)
            .expect("an address of this memory");
        let region = &mut self.buffers[index];
        let first = address as usize - region.start;
        let range = first..first + count * size_of::<T>();
        assert!(
            range.end <= region.bytes,
            "past the end of '{}'",
            region.name
        );
        (region, range)
    }

    fn add<T>(&mut self, region: Region, len: usize) -> Buffer<T> {
        let address = region.start;
        let place = self.buffers.partition_point(|other| other.start < address);
        self.buffers.insert(place, region);
        Buffer {
            address,
            len,
            element: PhantomData,
        }
    }

    fn region_at(&mut self, start: usize) -> &mut Region {
        let index = self.region_index(start);
        &mut self.buffers[index]
    }

    fn region_index(&self, start: usize) -> usize {
        let index = self.buffers.iter().position(|region| region.start == start);
        index.expect("the buffer is of this memory")
    }

    /// Returns the index of the buffer that contains an address.
    #[inline]
    pub(crate) fn find(&mut self, address: usize) -> Option<usize> {
        if !self
            .buffers
            .get(self.last_found)
            .is_some_and(|region| region.contains(address))
        {
            let after = self
                .buffers
                .partition_point(|region| region.start <= address);
            self.last_found = after
                .checked_sub(1)
                .filter(|&index| self.buffers[index].contains(address))?;
        }
        Some(self.last_found)
    }

    #[inline]
    pub(crate) fn region(&mut self, index: usize) -> &mut Region {
        &mut self.buffers[index]
    }

    pub(crate) fn regions(&self) -> &[Region] {
        &self.buffers
    }

    /// Ends a launch: all its accesses are ordered before whatever comes next.
    pub(crate) fn end_launch(&mut self) {
        for region in &mut self.buffers {
            region.shadow.end_launch();
        }
    }

    /// Describes an address outside all buffers, in relation to the nearest one.
    pub(crate) fn describe(&self, address: usize) -> String {
        let distance = |region: &&Region| {
            if address < region.start {
                region.start - address
            } else {
                address - region.start - region.bytes
            }
        };
        match self.buffers.iter().min_by_key(distance) {
            Some(nearest) if distance(&nearest) < RED_ZONE => {
                let side = if address < nearest.start {
                    "before the start"
                } else {
                    "past the end"
                };
                format!(
                    "{} bytes {side} of '{}' ({} bytes)",
                    distance(&nearest),
                    nearest.name,
                    nearest.bytes
                )
            }
            _ => format!("at {address:#x}, where no buffer is"),
        }
    }
}
