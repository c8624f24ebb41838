//! Builds the section on the training of the runs: loss, temperature and statistics against step.

use anyhow::Result;
use maud::{Markup, PreEscaped, html};

use super::{
    charts::{Curve, curves, figure},
    run::{Shown, swatch},
};
use crate::train::metrics::StepMetrics;

/// The most points of a curve. Each is the mean over some steps.
const POINTS: usize = 120;

/// A function that returns a value of a step, where it has one.
type Value = fn(&StepMetrics) -> Option<f64>;

/// Builds the section on runs of one catalogue.
pub fn training(runs: &[Shown]) -> Result<Markup> {
    let (begun, others): (Vec<&Shown>, Vec<&Shown>) =
        runs.iter().partition(|shown| !shown.run.steps.is_empty());
    let chart = |title: &str, value: Value| -> Result<Markup> {
        let curves = curves(
            &begun
                .iter()
                .map(|shown| curve(shown, value))
                .collect::<Vec<_>>(),
        )?;
        Ok(figure(title, curves.map(PreEscaped)))
    };
    let longest = begun.iter().map(|shown| shown.run.steps.len()).max();
    let width = longest.unwrap_or(0).div_ceil(POINTS);
    let charts = match begun.is_empty() {
        true => html! {},
        false => html! {
            p {
                "All against the step of the optimizer."
                @if width > 1 { " A point is the mean over up to " (width) " steps." }
                " Each kind of loss has its own convention (ats and bear-ats multiply by the temperature, and they and "
                "bear leave out unary rows): compare their shapes, not their heights."
            }
            div.charts {
                (chart("Loss", |step| Some(step.loss))?)
                (chart("Item NLL of the validation rows, in nats", |step| step.validation_nll)?)
                (chart("Temperature", |step| Some(step.temperature))?)
                (chart("μ⁺ − μ: how far targets are above the mean valid logit", |step| {
                    Some(step.positive_mean? - step.mean?)
                })?)
                (chart("σ²: variance of the valid logits", |step| step.variance)?)
                (chart("Norm of the gradient, before it is clipped", |step| Some(step.gradient_norm))?)
            }
            (table(&begun))
        },
    };
    Ok(html! {
        h2 { "How they were trained" }
        @for shown in others {
            p.missing { (swatch(shown)) " has no steps yet." }
        }
        (charts)
    })
}

/// Averages the values over stretches of steps.
fn curve(shown: &Shown, value: Value) -> Curve {
    let steps = shown.run.steps.iter();
    let values: Vec<(f64, f64)> = steps
        .filter_map(|step| Some((step.step as f64, value(step)?)))
        .collect();
    let width = values.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let (steps, values) = part
            .iter()
            .fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        let count = part.len() as f64;
        (steps / count, values / count)
    };
    Curve {
        colour: shown.colour,
        points: values.chunks(width).map(mean).collect(),
    }
}

fn table(runs: &[&Shown]) -> Markup {
    let row = |shown: &Shown| {
        let steps = &shown.run.steps;
        let tenth = &steps[steps.len() - steps.len().div_ceil(10)..];
        let loss = tenth.iter().map(|step| step.loss).sum::<f64>() / tenth.len() as f64;
        let validations = steps
            .iter()
            .filter_map(|step| Some((step.step, step.validation_nll?)));
        let best = validations.min_by(|a, b| a.1.total_cmp(&b.1));
        let tokens: usize = steps.iter().map(|step| step.tokens).sum();
        let seconds: f64 = steps
            .iter()
            .map(|step| step.tokens as f64 / step.tokens_per_second)
            .sum();
        let last = steps.last();
        html! { tr {
            th { (swatch(shown)) }
            td { (shown.run.setting("loss.loss")) }
            td { (steps.len()) }
            td { (format!("{loss:.4}")) }
            td { @if let Some(step) = last { (format!("{:.3}", step.temperature)) } }
            @if let Some((step, item_nll)) = best {
                td { (step) }
                td { (format!("{item_nll:.4}")) }
            } @else {
                td { "–" }
                td { "–" }
            }
            td { (format!("{:.0}", tokens as f64 / seconds)) }
        } }
    };
    html! {
        div.wide { table {
            thead { tr {
                th { "run" }
                th { "loss" }
                th { "steps" }
                th { "loss, last tenth" }
                th { "temperature" }
                th { "best step" }
                th { "its item NLL" }
                th { "tokens/s" }
            } }
            tbody { @for shown in runs { (row(shown)) } }
        } }
        @if runs.iter().all(|shown| shown.run.steps.iter().all(|step| step.validation_nll.is_none())) {
            p.missing { "No run was evaluated on validation rows during training: the last checkpoint is used." }
        }
    }
}
