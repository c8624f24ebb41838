//! Runs whole pieces of work on threads.

use anyhow::{Context, Result, anyhow};
use candle_core::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// One pool of one thread for each processor. A small model's operations are too short to be shared out one by one:
/// threads would spend more time waiting for each other than working. Inside such a pool every operation stays on its
/// thread. A GPU is given all pieces by the thread that asks for them.
pub struct Workers {
    pools: Vec<ThreadPool>,
}

impl Workers {
    /// Starts as many workers as rayon would use threads, and none for a GPU, whose stream belongs to one thread.
    pub fn new(device: &Device) -> Result<Self> {
        let count = match device {
            Device::Cpu => rayon::current_num_threads(),
            _ => 0,
        };
        let pool = |_| {
            ThreadPoolBuilder::new()
                .num_threads(1)
                .build()
                .context("cannot start a thread")
        };
        let pools = (0..count).map(pool).collect::<Result<_>>()?;
        Ok(Self { pools })
    }

    /// Returns how many pieces are worked on at once.
    pub fn count(&self) -> usize {
        self.pools.len().max(1)
    }

    /// Calls `task` for every index below `count`, and returns the results in their order.
    pub fn map<R: Send>(
        &self,
        count: usize,
        task: impl Fn(usize) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        if self.pools.is_empty() {
            return (0..count).map(task).collect();
        }
        let share = |worker: usize| -> Vec<Result<R>> {
            self.pools[worker].install(|| {
                (worker..count)
                    .step_by(self.pools.len())
                    .map(&task)
                    .collect()
            })
        };
        let mut shares = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.pools.len())
                .map(|worker| scope.spawn(move || share(worker)))
                .collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a worker panicked")));
            joined
                .map(|share| share.map(Vec::into_iter))
                .collect::<Result<Vec<_>>>()
        })?;
        let next = |index: usize| {
            let share = &mut shares[index % self.pools.len()];
            share
                .next()
                .unwrap_or_else(|| Err(anyhow!("a worker left its piece {index} undone")))
        };
        (0..count).map(next).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_errors_come_through() {
        let workers = Workers::new(&Device::Cpu).unwrap();
        assert_eq!(
            workers.map(7, |index| Ok(index * 2)).unwrap(),
            [0, 2, 4, 6, 8, 10, 12]
        );
        assert!(workers.map(0, Ok).unwrap().is_empty());
        let failed = workers.map(5, |index| {
            if index == 3 {
                Err(anyhow!("three"))
            } else {
                Ok(index)
            }
        });
        assert_eq!(failed.unwrap_err().to_string(), "three");
    }
}
