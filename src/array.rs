//! Arrays of numbers that are in memory of their own, or in a mapped file.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::Mmap;

/// An array of numbers, wherever they are.
#[derive(Clone)]
pub(crate) enum Array<T> {
    Owned(Vec<T>),
    Mapped(Mapped<T>),
}

/// A part of a mapped file that is an array of `T`. Values of this type exist only for parts that begin at a multiple of the
/// alignment of `T` and have whole elements.
#[derive(Clone)]
pub(crate) struct Mapped<T> {
    file: Arc<Mmap>,
    bytes: Range<usize>,
    elements: PhantomData<T>,
}

impl<T: Pod> Mapped<T> {
    /// Makes the array of these bytes of the file, or `None` where they are no such array: out of bounds, misaligned, or
    /// not a whole number of elements.
    pub fn new(file: &Arc<Mmap>, bytes: Range<usize>) -> Option<Self> {
        bytemuck::try_cast_slice::<u8, T>(file.get(bytes.clone())?).ok()?;
        Some(Self {
            file: file.clone(),
            bytes,
            elements: PhantomData,
        })
    }
}

impl<T: Pod> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped(part) => bytemuck::cast_slice(&part.file[part.bytes.clone()]),
        }
    }
}

impl<T> From<Vec<T>> for Array<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(values)
    }
}

impl<T: Pod + PartialEq> PartialEq for Array<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Pod + Eq> Eq for Array<T> {}

/// Shows the first elements: an array of a large catalogue is no message.
impl<T: Pod + fmt::Debug> fmt::Debug for Array<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 64;
        let mut list = formatter.debug_list();
        list.entries(self.iter().take(SHOWN));
        match self.len() > SHOWN {
            true => list.finish_non_exhaustive(),
            false => list.finish(),
        }
    }
}
