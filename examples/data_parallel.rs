//! Shares a batch among several processes, as a trainer of your own would: statistics are gathered and merged before the adaptive
//! temperature takes its step, so that every process uses the temperature of the whole batch. Threads stand for the processes
//! here, and `Group` for MPI, NCCL or a socket. `msl` does the same over MPI (`driver/src/exchange`).
//!
//! ```sh
//! cargo run --release --example data_parallel
//! ```

use std::sync::{Barrier, Mutex};

use candle_core::{Device, Tensor, Var};
use candle_trie::{
    AdaptiveStrategy, MaskedSoftmaxLoss, Reduction, Rows, Scope, Statistics, TokenTrie,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A library that exchanges messages, as every process needs it: it returns the bytes that each has given, in the order of the processes.
struct Group {
    barrier: Barrier,
    given: Vec<Mutex<Vec<u8>>>,
}

impl Group {
    fn gather(&self, process: usize, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        let poisoned = |_| "another process has failed";
        *self.given[process].lock().map_err(poisoned)? = bytes.to_vec();
        self.barrier.wait();
        let all = self
            .given
            .iter()
            .map(|given| Ok(given.lock().map_err(poisoned)?.clone()));
        let all = all.collect();
        self.barrier.wait();
        all
    }
}

/// The result of a step: the temperature, and this process's terms of the loss and of the head's gradient.
struct Share {
    temperature: f64,
    loss: f64,
    gradient: Vec<f64>,
}

const PROCESSES: usize = 3;

/// Takes a step of one process with its responses.
fn step(
    group: &Group,
    process: usize,
    trie: &TokenTrie,
    labels: &[Vec<i64>],
) -> Result<Share, Failure> {
    let mut loss = MaskedSoftmaxLoss::new(trie, strategy())?;
    let rows = Rows::from_shifted(trie, labels)?;
    let (hidden, head) = model(labels)?;

    // 1. Statistics are plain bytes, and merging them is exact: their order is the only thing to agree on.
    let own = loss.statistics((&hidden, &head), &rows)?;
    let gathered = group.gather(process, bytemuck::bytes_of(&own))?;
    let statistics = (gathered.iter())
        .map(|bytes| bytemuck::pod_read_unaligned::<Statistics>(bytes))
        .fold(Statistics::default(), |merged, next| merged.merge(&next));
    let temperature = loss.temperature_mut()?.step(&statistics, 0)?;

    // 2. All divide by the branching rows of the whole batch, so that losses and gradients add up to its mean.
    loss.set_reduction(Reduction::MeanOver(statistics.rows() as f64))?;
    let output = loss.forward_at((&hidden, &head), &rows, temperature)?;

    // 3. Gradients are summed over the processes: in a trainer, before the optimizer's step.
    let gradients = output.loss.backward()?;
    let gradient = gradients.get(&head).ok_or("the head has no gradient")?;
    Ok(Share {
        temperature,
        loss: output.loss.to_scalar()?,
        gradient: gradient.flatten_all()?.to_vec1()?,
    })
}

fn main() -> Result<(), Failure> {
    let trie =
        TokenTrie::new((0..40u32).map(|item| (u64::from(item), [item % 8, 8 + item / 8, 13])))?;
    let batch: Vec<Vec<i64>> = (0..7).map(|row| vec![row, 8 + row % 5, 13]).collect();

    let group = Group {
        barrier: Barrier::new(PROCESSES),
        given: (0..PROCESSES).map(|_| Mutex::default()).collect(),
    };
    let (group, trie, batch) = (&group, &trie, &batch);
    let shares = std::thread::scope(|scope| {
        let processes: Vec<_> = (0..PROCESSES)
            .map(|process| {
                scope.spawn(move || {
                    let own: Vec<_> = batch
                        .iter()
                        .skip(process)
                        .step_by(PROCESSES)
                        .cloned()
                        .collect();
                    step(group, process, trie, &own)
                })
            })
            .collect();
        let joined = processes
            .into_iter()
            .map(|process| process.join().map_err(|_| "a process panicked")?);
        joined.collect::<Result<Vec<Share>, Failure>>()
    })?;

    // One process with the whole batch, whose launch moves the temperature by itself.
    let mut loss = MaskedSoftmaxLoss::new(trie, strategy())?;
    let (hidden, head) = model(batch)?;
    let output = loss.forward((&hidden, &head), &Rows::from_shifted(trie, batch)?)?;
    let temperature = output.read_temperature()?;
    let total: f64 = shares.iter().map(|share| share.loss).sum();
    println!(
        "temperature {temperature:.6} of one process, {:.6} of {PROCESSES}",
        shares[0].temperature
    );
    println!(
        "loss        {:.6} of one process, {total:.6} of {PROCESSES}",
        output.loss.to_scalar::<f64>()?
    );
    assert!(
        shares
            .iter()
            .all(|share| (share.temperature - temperature).abs() < 1e-12)
    );
    assert!((total - output.loss.to_scalar::<f64>()?).abs() < 1e-12);

    let expected = output.loss.backward()?;
    let expected = expected.get(&head).ok_or("the head has no gradient")?;
    for (place, expected) in expected.flatten_all()?.to_vec1::<f64>()?.iter().enumerate() {
        let sum: f64 = shares.iter().map(|share| share.gradient[place]).sum();
        assert!((sum - expected).abs() < 1e-12);
    }
    Ok(())
}

fn strategy() -> AdaptiveStrategy {
    AdaptiveStrategy {
        scope: Scope::Branching,
        initial: 3.0,
        ..Default::default()
    }
}

/// Hidden states `[responses, 3, 8]`, which depend on the labels alone, and a head `[14, 8]` that is trained.
fn model(labels: &[Vec<i64>]) -> Result<(Tensor, Var), Failure> {
    let hidden = (labels.iter().flatten())
        .flat_map(|&label| (0..8).map(move |column| ((label * 7 + column * 3) as f64).sin()));
    let hidden = Tensor::from_iter(hidden, &Device::Cpu)?.reshape((labels.len(), 3, 8))?;
    let head = Tensor::from_iter(
        (0..14 * 8).map(|place| (f64::from(place) * 1.3).cos()),
        &Device::Cpu,
    )?;
    Ok((hidden, Var::from_tensor(&head.reshape((14, 8))?)?))
}
