//! Runs the subcommands of `msl`.

pub mod arguments;
mod demo;
mod evaluate;
mod export;
mod inspect;
mod merge;
mod opened_run;
mod recommend;
mod report;
mod train;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_trie::{MaskedSoftmaxLoss, Rows, TokenTrie};

use crate::{
    commands::arguments::{Arguments, Command},
    exchange::Exchange,
    model::{Llama, LlamaConfig, device::DeviceChoice},
};

/// Does what the command line asks for.
///
/// # Errors
/// Returns the error of the command, and refuses a command that one process must run alone where several were started.
pub fn run(arguments: &Arguments, exchange: &dyn Exchange) -> Result<()> {
    let shared = matches!(
        arguments.command,
        Command::Train(_) | Command::Resume(_) | Command::Evaluate(_)
    );
    ensure!(
        shared || exchange.size() == 1,
        "{} processes were started for a command that one runs: train, resume and evaluate can be shared, start the others \
         without mpirun or srun",
        exchange.size()
    );
    let computes = shared || matches!(arguments.command, Command::Demo(_) | Command::Recommend(_));
    ensure!(
        computes || !matches!(arguments.device, DeviceChoice::Cuda(_)),
        "--device names a GPU, which this command does not use: leave it out"
    );
    let device = || open_device(arguments.device);
    match &arguments.command {
        Command::Demo(arguments) => demo::demo(arguments, &device()?),
        Command::Train(arguments) => train::train(arguments, &device()?, exchange),
        Command::Resume(arguments) => train::resume(arguments, &device()?, exchange),
        Command::Inspect(arguments) => inspect::inspect(arguments),
        Command::Merge(arguments) => merge::merge(arguments),
        Command::Export(arguments) => export::export(arguments),
        Command::Evaluate(arguments) => evaluate::evaluate(arguments, &device()?, exchange),
        Command::Recommend(arguments) => recommend::recommend(arguments, &device()?),
        Command::Report(arguments) => report::report(arguments),
    }
}

/// Opens the device to compute on. A GPU on which something of a training is missing is used only where it is named.
fn open_device(choice: DeviceChoice) -> Result<Device> {
    let device = choice.open()?;
    if choice == DeviceChoice::Auto
        && !device.is_cpu()
        && let Err(error) = train_a_little(&device)
    {
        eprintln!(
            "computing on the processor, because the GPU cannot do everything yet: {error:#}"
        );
        return Ok(Device::Cpu);
    }
    Ok(device)
}

/// Runs the forward and the backward pass of a tiny model and the loss.
fn train_a_little(device: &Device) -> Result<()> {
    let config = LlamaConfig {
        vocab_size: 4,
        hidden_size: 16,
        intermediate_size: 16,
        ..LlamaConfig::default()
    };
    let model = Llama::random(config, 0, DType::F32, device)?;
    let trie = TokenTrie::new([(0, [1, 3]), (1, [2, 3])])?;
    let rows = Rows::from_shifted(&trie, &vec![vec![1i64, 3]])?;
    let hidden = model.hidden_in_training(&Tensor::new(&[[2u32, 1]], device)?, &[0])?;
    let mut loss = MaskedSoftmaxLoss::new(&trie, 1.0)?;
    let output = loss.forward((&hidden, &model.head()?), &rows)?;
    output.loss.backward()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_can_do_all_that_a_training_needs() {
        train_a_little(&Device::Cpu).unwrap();
        assert!(open_device(DeviceChoice::Cpu).unwrap().is_cpu());
    }
}
