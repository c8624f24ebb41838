//! The launches that plans issue for a shape of the benchmarks, without a device.

use candle_trie::launch::{
    DensePlan, DenseTensors, DeviceLimits, Element, LinearGradients, LinearPlan, LinearTensors,
    TemperaturePlan,
};
use candle_trie::{MaskedSoftmaxLoss, Result, Temperature};

use crate::emulated::Recorder;
use crate::support::Shape;

/// Makes the plan of the loss over hidden states, with these gradients.
pub fn linear_plan(
    shape: &Shape,
    width: usize,
    element: Element,
    gradients: LinearGradients,
    limits: &DeviceLimits,
) -> LinearPlan {
    let loss = MaskedSoftmaxLoss::new(&shape.sets, Temperature::fixed(1.5)).expect("a loss");
    let rows = loss.linear_rows(&shape.rows).expect("rows");
    let most_scores = LinearPlan::MOST_SCORES;
    LinearPlan::new(rows, element, width, gradients, limits, most_scores).expect("a plan")
}

/// Issues such a plan, forward and backward.
pub fn issue_linear(
    shape: &Shape,
    width: usize,
    element: Element,
    gradients: LinearGradients,
    limits: &DeviceLimits,
) -> Result<Recorder> {
    let plan = linear_plan(shape, width, element, gradients, limits);
    let temperature = TemperaturePlan::at(1.5);
    let tensors = LinearTensors {
        hidden: Recorder::matrix(width),
        head: Recorder::matrix(width),
        base: None,
        bias: None,
        sets: Recorder::SETS,
        previous: None,
    };
    let direct = (gradients == LinearGradients::Direct).then_some(Recorder::ANYWHERE);
    let (mut recorder, upstream) = (Recorder::default(), &Recorder::UPSTREAM);
    let results = &Recorder::RESULTS;
    // SAFETY: nothing is launched, so no address is used.
    unsafe {
        let saved = plan.issue_forward(&mut recorder, &tensors, temperature, direct, results)?;
        if gradients != LinearGradients::Direct {
            plan.issue_hidden_gradient(&mut recorder, &saved, upstream, Recorder::ANYWHERE)?;
        }
        if let LinearGradients::All(_) = gradients {
            let wanted = [Some(Recorder::ANYWHERE); 2];
            plan.issue_head_gradient(&mut recorder, &saved, upstream, wanted)?;
        }
    }
    Ok(recorder)
}

/// Issues the plan of the loss over logits with a gradient, forward and backward.
pub fn issue_dense(
    shape: &Shape,
    width: usize,
    element: Element,
    temperature: &Temperature,
    limits: &DeviceLimits,
) -> Result<Recorder> {
    let loss = MaskedSoftmaxLoss::new(&shape.sets, temperature.clone())?;
    let plan = DensePlan::new(loss.dense_rows(&shape.rows)?, element, width, limits)?;
    let temperature = plan.rows().totals.next(temperature)?;
    let logits = Recorder::matrix(width);
    let tensors = DenseTensors {
        logits,
        sets: Recorder::SETS,
        previous: None,
    };
    let (mut recorder, results) = (Recorder::default(), &Recorder::RESULTS);
    // SAFETY: nothing is launched, so no address is used.
    unsafe {
        let to = Some(logits);
        let saved = plan.issue_forward(&mut recorder, &tensors, temperature, to, results)?;
        plan.issue_backward(&mut recorder, &saved, &Recorder::UPSTREAM, logits)?;
    }
    Ok(recorder)
}
