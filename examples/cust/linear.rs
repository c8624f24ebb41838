//! The loss over hidden states × head.

use std::error::Error;

use candle_trie::cust::{Executor, LinearGradients, LinearInput, LinearLoss, Logit};
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};

use crate::{Kind, POSITIONS, STEPS, Task, VOCABULARY, compare, waves};

const WIDTH: usize = 8;

/// A few steps down the gradient of the hidden states, each compared with the definition. The head is
/// frozen: to ask for its gradient too, give it a slice in [`LinearGradients`].
pub fn train<T: Logit + Default>(
    executor: &Executor,
    kind: &Kind<T>,
    task: &Task,
) -> Result<(), Box<dyn Error>> {
    let stream = Stream::new(StreamFlags::DEFAULT, None)?;
    let mut temperature = task.loss.temperature()?.clone();
    let mut loss = LinearLoss::new(executor, task.loss.clone(), VOCABULARY, WIDTH)?;
    let head: Vec<T> = waves(VOCABULARY * WIDTH).into_iter().map(kind.to).collect();
    let exact_head: Vec<f64> = head.iter().copied().map(kind.from).collect();
    let head = DeviceBuffer::from_slice(&head)?;
    let mut hidden = [0.25; POSITIONS * WIDTH];
    for step in 0..STEPS {
        let rounded: Vec<T> = hidden.iter().copied().map(kind.to).collect();
        let on_device = DeviceBuffer::from_slice(&rounded)?;
        let mut gradient = DeviceBuffer::from_slice(&vec![T::default(); hidden.len()])?;
        let input = LinearInput {
            hidden: &on_device,
            head: &head,
            bias: None,
        };
        let wanted = LinearGradients {
            hidden: &mut gradient,
            head: None,
            bias: None,
        };
        let output = loss.value_and_gradients(&stream, input, &task.rows, wanted)?;
        let found = f64::from(output.read_loss()?[0]);
        let gradient: Vec<f64> = gradient.as_host_vec()?.into_iter().map(kind.from).collect();

        let exact: Vec<f64> = rounded.into_iter().map(kind.from).collect();
        let expected = task.defined(&logits(&exact, &exact_head), &mut temperature)?;
        let used = output.read_temperature()?;
        let name = kind.name;
        println!("hidden states in {name}, step {step}: loss {found} at temperature {used:.4}");
        compare("loss", &[found], &[expected.loss], 1e-5)?;
        compare("temperature", &[used], &[expected.temperature], 1e-5)?;
        let through_head = of_hidden(&expected.gradient, &exact_head);
        compare("gradient", &gradient, &through_head, kind.tolerance)?;
        for (hidden, gradient) in hidden.iter_mut().zip(&gradient) {
            *hidden -= 0.1 * *gradient as f32;
        }
    }
    Ok(())
}

/// `[N, V]`, which the loss itself never makes.
fn logits(hidden: &[f64], head: &[f64]) -> Vec<f64> {
    let product = |hidden: &[f64], head: &[f64]| hidden.iter().zip(head).map(|(a, b)| a * b).sum();
    hidden
        .chunks(WIDTH)
        .flat_map(|hidden| head.chunks(WIDTH).map(move |head| product(hidden, head)))
        .collect()
}

/// The gradient of the hidden states `[N, H]`, from that of the logits.
fn of_hidden(gradient: &[f64], head: &[f64]) -> Vec<f64> {
    let column = |errors: &[f64], i: usize| {
        let column = head.iter().skip(i).step_by(WIDTH);
        errors.iter().zip(column).map(|(a, b)| a * b).sum()
    };
    gradient
        .chunks(VOCABULARY)
        .flat_map(|errors| (0..WIDTH).map(move |i| column(errors, i)))
        .collect()
}
