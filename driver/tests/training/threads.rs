//! Ranks that are threads of one test.

use std::sync::{Barrier, Mutex};

use anyhow::Result;
use candle_core::{DType, Tensor};

use msl::exchange::Exchange;

/// What the ranks of one test share.
struct Board {
    barrier: Barrier,
    given: Vec<Mutex<Vec<u8>>>,
}

/// One rank of a test.
pub struct ThreadRank<'a> {
    rank: usize,
    board: &'a Board,
}

/// Runs a function on `size` ranks at once, and returns their results in the order of the ranks.
pub fn run_ranks<R: Send>(size: usize, rank: impl Fn(&dyn Exchange) -> R + Sync) -> Vec<R> {
    let board = Board {
        barrier: Barrier::new(size),
        given: (0..size).map(|_| Mutex::default()).collect(),
    };
    let (board, run) = (&board, &rank);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size)
            .map(|rank| scope.spawn(move || run(&ThreadRank { rank, board })))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

impl Exchange for ThreadRank<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.board.given.len()
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        let bytes = bytemuck::cast_slice(&values.to_dtype(DType::F64)?.to_vec1::<f64>()?).to_vec();
        let mut sum: Option<Tensor> = None;
        for term in self.gather(&bytes)? {
            let term: Vec<f64> = bytemuck::pod_collect_to_vec(&term);
            let term = Tensor::new(term, values.device())?.to_dtype(values.dtype())?;
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        Ok(sum.unwrap())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        *self.board.given[self.rank].lock().unwrap() = bytes.to_vec();
        self.barrier()?;
        let gathered = self
            .board
            .given
            .iter()
            .map(|given| given.lock().unwrap().clone())
            .collect();
        self.barrier()?;
        Ok(gathered)
    }

    fn barrier(&self) -> Result<()> {
        self.board.barrier.wait();
        Ok(())
    }

    fn abort(&self, _status: u8) {
        panic!("rank {} aborted", self.rank);
    }
}
