//! The emulator as what passes are issued to.

use bytemuck::Pod;
use candle_trie::Error;
use candle_trie::launch::{Element, Launch, Lifetime, Product, Queue};
use candle_trie_emulator::{Emulator, Fault, Memory, Report};
use half::{bf16, f16};

use crate::emulated::run;
use crate::number::Number;

pub struct EmulatorQueue<'a> {
    pub memory: Memory,
    emulator: &'a Emulator,
    reports: Vec<(&'static str, Report)>,
    /// Where counters are, and how many.
    counters: (u64, usize),
    scratch: Vec<(&'static str, u64)>,
}

/// What a kernel does wrong. Plans that refuse are a fault of the test.
pub struct Failure(pub Fault);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl<'a> EmulatorQueue<'a> {
    pub fn new(emulator: &'a Emulator) -> Self {
        Self {
            memory: Memory::new(),
            emulator,
            reports: Vec::new(),
            counters: (0, 0),
            scratch: Vec::new(),
        }
    }

    /// As if the queue were dropped, and another went on with what it keeps.
    pub fn free_scratch(&mut self) {
        for (_, address) in self.scratch.drain(..) {
            self.memory.free(address);
        }
    }

    /// Of the last launch of a kernel whose name begins so; an empty one where there was none.
    pub fn report(&mut self, kernel: &str) -> Report {
        let last = (self.reports.iter()).rposition(|(name, _)| name.starts_with(kernel));
        last.map_or_else(Report::default, |last| self.reports.remove(last).1)
    }

    /// That the counters are ready for another launch.
    pub fn assert_counted(&mut self) -> Result<(), Fault> {
        let (address, count) = self.counters;
        let counters = self.memory.read::<u32>(address, count)?;
        assert_eq!(counters, vec![0; count]);
        Ok(())
    }
}

impl Queue for EmulatorQueue<'_> {
    type Error = Failure;

    /// Never the same memory again: whoever goes on with what was under a name reads nothing there.
    fn allocate<const N: usize>(
        &mut self,
        lifetime: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[u64; N], Failure> {
        Ok(parts.map(|(name, bytes)| {
            let address = self.memory.allocate::<u8>(name, bytes).address();
            if lifetime == Lifetime::Scratch {
                for (_, address) in self.scratch.extract_if(.., |(held, _)| *held == name) {
                    self.memory.free(address);
                }
                self.scratch.push((name, address));
            }
            address
        }))
    }

    /// Each part by itself, so that none can be mistaken for the next.
    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> Result<[u64; N], Failure> {
        Ok(parts.map(|(name, words)| {
            let address = self.memory.upload(name, words).address();
            if name == "arrived" {
                self.counters = (address, words.len());
            }
            address
        }))
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<(), Failure> {
        let report = run(self.emulator, launch, &mut self.memory)?;
        self.reports.push((launch.kernel, report));
        Ok(())
    }

    unsafe fn multiply(&mut self, product: &Product) -> Result<(), Failure> {
        match product.element {
            Element::F32 => multiply::<f32>(product, &mut self.memory)?,
            Element::F16 => multiply::<f16>(product, &mut self.memory)?,
            Element::Bf16 => multiply::<bf16>(product, &mut self.memory)?,
        }
        Ok(())
    }
}

/// What cuBLAS does on a device.
fn multiply<T: Number>(product: &Product, memory: &mut Memory) -> Result<(), Fault> {
    let rows = |count: u32, width: u32, address: u64, stride: u64, memory: &mut Memory| {
        let row = |index: u64| address + index * stride * size_of::<T>() as u64;
        (0..u64::from(count))
            .map(|index| {
                let values = memory.read::<T>(row(index), width as usize)?;
                Ok(values.into_iter().map(T::to_f64).collect())
            })
            .collect::<Result<Vec<Vec<f64>>, Fault>>()
    };
    let Product {
        columns,
        inner,
        left_transposed,
        right_transposed,
        ..
    } = *product;
    let either = |transposed: bool, (a, b): (u32, u32)| if transposed { (b, a) } else { (a, b) };
    let shape = either(left_transposed, (product.rows, inner));
    let left = rows(shape.0, shape.1, product.left, product.left_stride, memory)?;
    let shape = either(right_transposed, (inner, columns));
    let right = rows(
        shape.0,
        shape.1,
        product.right,
        product.right_stride,
        memory,
    )?;
    let at = |matrix: &[Vec<f64>], transposed: bool, (row, column): (usize, usize)| match transposed
    {
        true => matrix[column][row],
        false => matrix[row][column],
    };
    for index in 0..product.rows as usize {
        let mut result = vec![0.0; columns as usize];
        for k in 0..inner as usize {
            let value = at(&left, left_transposed, (index, k));
            for (column, result) in result.iter_mut().enumerate() {
                *result += value * at(&right, right_transposed, (k, column));
            }
        }
        let address = product.result + 4 * index as u64 * product.result_stride;
        let mut result: Vec<f32> = result.into_iter().map(|sum| sum as f32).collect();
        if product.accumulates {
            let held = memory.read::<f32>(address, result.len())?;
            result = result
                .iter()
                .zip(held)
                .map(|(sum, held)| sum + held)
                .collect();
        }
        memory.write(address, &result);
    }
    Ok(())
}
