//! A stream that records what is issued to it and runs nothing.

use bytemuck::Pod;
use candle_trie::launch::{
    DeviceMatrix, DevicePtr, ForwardResults, Launch, Lifetime, Stream, TokenSetsView, Upstream,
};
use candle_trie::{Error, Result};

/// An uploaded table under its name.
pub type Table = (&'static str, Vec<u32>);

/// A launch, as it was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    pub kernel: &'static str,
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    pub shared_bytes: u32,
    pub cooperative: bool,
    /// The bytes of the parameters.
    pub params: Vec<u8>,
}

impl Issued {
    pub fn of<P: Pod>(launch: &Launch<P>) -> Self {
        Self {
            kernel: launch.kernel,
            blocks: launch.grid.iter().product(),
            threads: launch.block.iter().product(),
            shared_bytes: launch.shared_bytes,
            cooperative: launch.cooperative,
            params: bytemuck::bytes_of(&launch.params).to_vec(),
        }
    }
}

/// What was issued.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    /// The tables of the last upload.
    pub tables: Vec<Table>,
    pub launches: Vec<Issued>,
    /// Allocations by name, in bytes.
    pub allocated: Vec<(&'static str, usize)>,
    pub uploaded_bytes: usize,
}

impl Recorder {
    /// Where every buffer is said to be. Nothing is read there.
    pub const ANYWHERE: DevicePtr = DevicePtr::new(1 << 20).expect("not 0");
    pub const RESULTS: ForwardResults = ForwardResults {
        loss: Self::ANYWHERE,
        statistics: Self::ANYWHERE,
        temperature: Self::ANYWHERE,
    };
    pub const UPSTREAM: Upstream = Upstream {
        loss: Self::ANYWHERE,
        temperature: Self::ANYWHERE,
    };
    pub const SETS: TokenSetsView = TokenSetsView {
        offsets: Some(Self::ANYWHERE),
        tokens: Some(Self::ANYWHERE),
        vocabulary: 0,
    };

    pub fn matrix(width: usize) -> DeviceMatrix {
        DeviceMatrix {
            address: Some(Self::ANYWHERE),
            row_stride: width as u64,
        }
    }
}

impl Stream for Recorder {
    type Error = Error;

    fn allocate<const N: usize>(
        &mut self,
        _: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        self.allocated.extend(parts);
        Ok(parts.map(|(_, bytes)| (bytes > 0).then_some(Self::ANYWHERE)))
    }

    fn upload<const N: usize>(
        &mut self,
        tables: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        self.tables = tables.map(|(name, table)| (name, table.to_vec())).to_vec();
        self.uploaded_bytes += tables
            .iter()
            .map(|(_, table)| size_of_val(*table))
            .sum::<usize>();
        Ok(tables.map(|(_, table)| (!table.is_empty()).then_some(Self::ANYWHERE)))
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<()> {
        self.launches.push(Issued::of(launch));
        Ok(())
    }
}
