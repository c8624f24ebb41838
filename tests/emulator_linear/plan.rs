//! What a pass issues, looked at without running it.

use bytemuck::{Pod, Zeroable};
use candle_trie::launch::{
    DeviceLimits, DevicePtr, Element, Launch, Lifetime, LinearGradients, LinearPass, LinearResults,
    LinearRows, LinearTensors, LinearUpstream, Queue, TemperaturePlan,
};
use candle_trie::{Error, Result};

/// Mirrors `LinearGroup` of kernels/linear.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Group {
    pub first_token: u32,
    pub tokens: u32,
    pub first_row: u32,
    pub rows: u32,
    pub scores: u64,
    pub records: u64,
    pub first_rank: u32,
    unused: [u32; 3],
}

/// Mirrors `LinearItem` of kernels/linear_pass.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Item {
    pub group: u32,
    pub first_row: u32,
    pub rows: u32,
    pub first: u32,
    pub count: u32,
    pub inner_first: u32,
    pub inner_count: u32,
    pub slice: u32,
    pub slices: u32,
    pub partials: u32,
    pub counter: u32,
    unused: u32,
}

/// The tables that a pass uploads.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    pub groups: Vec<Group>,
    /// Launch by launch, those of the scores before those of the gradient.
    pub items: Vec<Item>,
    /// How many counters.
    pub counters: usize,
}

impl Tables {
    /// What [`Queue::upload`] is given.
    pub fn new(parts: &[(&'static str, &[u32])]) -> Self {
        let part = |wanted| {
            let mut found = parts.iter().filter(|(name, _)| *name == wanted);
            found.next().map_or(&[][..], |(_, words)| words)
        };
        Self {
            groups: bytemuck::pod_collect_to_vec(part("groups")),
            items: bytemuck::pod_collect_to_vec(part("items")),
            counters: part("counters").len(),
        }
    }
}

/// A launch, without its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issued {
    pub kernel: &'static str,
    pub grid: u32,
    pub cooperative: bool,
    pub shared_bytes: u32,
    /// Of a forward launch: how many items each phase has.
    pub items: (usize, usize),
}

/// Counts what is issued to it.
#[derive(Debug, Default)]
pub struct Plan {
    pub uploads: usize,
    pub tables: Tables,
    pub launches: Vec<Issued>,
    /// By name, in bytes.
    pub allocated: Vec<(&'static str, usize)>,
}

impl Queue for Plan {
    type Error = Error;

    fn allocate<const N: usize>(
        &mut self,
        _: Lifetime,
        parts: [(&'static str, usize); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        self.allocated.extend(parts);
        Ok(parts.map(|(_, bytes)| DevicePtr::new(1 << 20).filter(|_| bytes > 0)))
    }

    fn upload<const N: usize>(
        &mut self,
        parts: [(&'static str, &[u32]); N],
    ) -> Result<[Option<DevicePtr>; N]> {
        self.uploads += 1;
        self.tables = Tables::new(&parts);
        Ok(parts.map(|(_, words)| DevicePtr::new(1 << 20).filter(|_| !words.is_empty())))
    }

    unsafe fn launch<P: Pod>(&mut self, launch: &Launch<P>) -> Result<()> {
        self.launches.push(issued(launch));
        Ok(())
    }
}

/// Of any launch of a pass.
pub fn issued<P: Pod>(launch: &Launch<P>) -> Issued {
    let bytes = bytemuck::bytes_of(&launch.params);
    // `score_count` and `gradient_count` of `LinearForwardParams`.
    let count = |at: usize| bytemuck::pod_read_unaligned::<u32>(&bytes[at..at + 4]) as usize;
    let is_forward = launch.kernel.starts_with("linear_forward");
    Issued {
        kernel: launch.kernel,
        grid: launch.grid[0],
        cooperative: launch.cooperative,
        shared_bytes: launch.shared_bytes,
        items: if is_forward {
            (count(368), count(372))
        } else {
            (0, 0)
        },
    }
}

impl Plan {
    /// Of a pass with everything that `gradients` ask for.
    pub fn new(
        rows: LinearRows,
        element: Element,
        width: usize,
        gradients: LinearGradients,
        limits: &DeviceLimits,
        temperature: TemperaturePlan,
    ) -> Self {
        let most = LinearPass::MOST_SCORES;
        let pass = LinearPass::new(rows, element, width, gradients, limits, most).unwrap();
        let mut plan = Self::default();
        let somewhere = DevicePtr::new(1 << 20).unwrap();
        let tensors = LinearTensors {
            hidden: Some(somewhere),
            hidden_stride: width as u64,
            head: somewhere,
            head_stride: width as u64,
            bias: None,
            tokens: Some(somewhere),
            previous: None,
        };
        let results = LinearResults {
            loss: somewhere,
            statistics: somewhere,
            temperature: somewhere,
            hidden_gradient: None,
        };
        let upstream = LinearUpstream {
            loss: somewhere,
            temperature: somewhere,
        };
        // SAFETY: nothing is run.
        unsafe {
            let forwarded = pass.forward(&mut plan, &tensors, temperature, &results);
            let forwarded = forwarded.unwrap();
            if gradients != LinearGradients::None && gradients != LinearGradients::Direct {
                pass.hidden_gradient(&mut plan, &forwarded, upstream, somewhere)
                    .unwrap();
            }
            if matches!(gradients, LinearGradients::All(_)) {
                let wanted = [Some(somewhere), None];
                pass.head_gradient(&mut plan, &forwarded, upstream, wanted)
                    .unwrap();
            }
        }
        plan
    }

    /// The items of the scores and of the gradient, of one forward launch.
    pub fn phases(&self) -> (&[Item], &[Item]) {
        let (scores, gradients) = self.launches[0].items;
        assert_eq!(scores + gradients, self.tables.items.len());
        self.tables.items.split_at(scores)
    }
}
