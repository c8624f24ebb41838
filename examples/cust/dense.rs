//! The loss over logits.

use std::error::Error;

use candle_trie::cust::{DenseLoss, Executor, Logit};
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};

use crate::{Kind, POSITIONS, STEPS, Task, VOCABULARY, compare, waves};

/// A few steps down the gradient of the logits, each compared with the definition.
pub fn train<T: Logit + Default>(
    executor: &Executor,
    kind: &Kind<T>,
    task: &Task,
) -> Result<(), Box<dyn Error>> {
    let stream = Stream::new(StreamFlags::DEFAULT, None)?;
    let mut temperature = task.loss.temperature()?.clone();
    let mut loss = DenseLoss::new(executor, task.loss.clone(), VOCABULARY)?;
    let mut logits = waves(POSITIONS * VOCABULARY);
    for step in 0..STEPS {
        let rounded: Vec<T> = logits.iter().copied().map(kind.to).collect();
        let on_device = DeviceBuffer::from_slice(&rounded)?;
        let mut gradient = DeviceBuffer::from_slice(&vec![T::default(); logits.len()])?;
        let output = loss.value_and_gradient(&stream, &on_device, &task.rows, &mut gradient)?;
        let found = f64::from(output.read_loss()?[0]);
        let gradient: Vec<f64> = gradient.as_host_vec()?.into_iter().map(kind.from).collect();

        let exact: Vec<f64> = rounded.into_iter().map(kind.from).collect();
        let expected = task.defined(&exact, &mut temperature)?;
        let used = output.read_temperature()?;
        let name = kind.name;
        println!("logits in {name}, step {step}: loss {found} at temperature {used:.4}");
        compare("loss", &[found], &[expected.loss], 1e-5)?;
        compare("temperature", &[used], &[expected.temperature], 1e-5)?;
        compare("gradient", &gradient, &expected.gradient, kind.tolerance)?;
        for (logit, gradient) in logits.iter_mut().zip(&gradient) {
            *logit -= *gradient as f32;
        }
    }
    Ok(())
}
