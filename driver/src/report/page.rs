//! Builds the page around the sections.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::style::RGBColor;

use super::{
    charts::{Curve, colours, curves, figure},
    recommending::recommending,
    run::{ReportedRun, Shown, swatch},
    training::training,
};
use crate::data::catalogue_shape::{CatalogueShape, Position};

const STYLE: &str = include_str!("page.css");

/// Builds the HTML page about runs. It needs no other file and no network.
pub fn page(runs: &[ReportedRun]) -> Result<String> {
    let catalogues = by_catalogue(runs);
    let mut sections = Vec::new();
    for catalogue in &catalogues {
        sections.push(html! {
            @if catalogues.len() > 1 { h1 { (catalogue[0].run.data.display()) } }
            p.legend { @for shown in catalogue { (swatch(shown)) " " } }
            (recommending(catalogue)?)
            (training(catalogue)?)
            (shapes(catalogue)?)
        });
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "msl report: " (joined(runs)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { "msl report" }
                main {
                    @for section in sections { section { (section) } }
                    section { (settings(runs)) }
                }
            }
        }
    };
    Ok(page.into_string())
}

/// Groups the runs by catalogue, in the order of the first run of each.
fn by_catalogue<'a>(runs: &'a [ReportedRun]) -> Vec<Vec<Shown<'a>>> {
    let mut catalogues: Vec<Vec<&ReportedRun>> = Vec::new();
    for run in runs {
        match catalogues
            .iter_mut()
            .find(|catalogue| catalogue[0].shares_catalogue(run))
        {
            Some(catalogue) => catalogue.push(run),
            None => catalogues.push(vec![run]),
        }
    }
    let coloured = |catalogue: Vec<&'a ReportedRun>| -> Vec<Shown<'a>> {
        let colours = colours(catalogue.len());
        let runs = catalogue.into_iter().zip(colours);
        runs.map(|(run, colour)| Shown { run, colour }).collect()
    };
    catalogues.into_iter().map(coloured).collect()
}

fn joined(runs: &[ReportedRun]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    names.join(", ")
}

/// Builds the section on the catalogue as the losses see it, which depends on the tokenizer of a run.
fn shapes(runs: &[Shown]) -> Result<Markup> {
    let mut distinct: Vec<(&CatalogueShape, Vec<&Shown>)> = Vec::new();
    for shown in runs {
        match distinct
            .iter_mut()
            .find(|(shape, _)| *shape == &shown.run.shape)
        {
            Some((_, users)) => users.push(shown),
            None => distinct.push((&shown.run.shape, vec![shown])),
        }
    }
    let mut sections = Vec::new();
    for (shape, users) in &distinct {
        sections.push(html! {
            @if distinct.len() > 1 { h3 { @for shown in users { (swatch(shown)) " " } } }
            (shape_section(shape, users[0].colour)?)
        });
    }
    Ok(html! {
        h2 { "The catalogue" }
        @for section in sections { (section) }
    })
}

fn shape_section(shape: &CatalogueShape, colour: RGBColor) -> Result<Markup> {
    let largest: Vec<String> = shape
        .largest_fan_outs
        .iter()
        .map(usize::to_string)
        .collect();
    let by_place = |value: fn(&Position) -> f64| -> Result<_> {
        let points = (1..).zip(&shape.positions);
        let points = points.map(|(place, position)| (f64::from(place), value(position)));
        let curve = Curve {
            colour,
            points: points.take(PLACES).collect(),
        };
        Ok(curves(&[curve])?.map(PreEscaped))
    };
    Ok(html! {
        div.charts {
            div.wide { table.facts { tbody {
                tr { th { "items" } td { (shape.items) } }
                tr { th { "different identifiers" } td { (shape.titles) } }
                tr { th { "nodes of the trie" } td { (shape.nodes) } }
                tr { th { "of them branching" } td { (shape.branching_nodes) } }
                tr { th { "longest identifier, tokens" } td { (shape.depth) } }
                tr { th { "tokens that an identifier begins with" } td { (shape.root_fan_out) } }
                tr { th { "largest fan-outs" } td { (largest.join(", ")) } }
                tr { th { "unary tokens of identifiers" } td { (format!("{:.1} %", 100.0 * shape.unary_share)) } }
            } } }
            (figure("Valid tokens, by position in the identifier (mean over all)", by_place(|position| position.mean_fan_out)?))
            (figure("Identifiers that are unary there, in %", by_place(|position| 100.0 * position.unary_share)?))
        }
    })
}

/// The number of token positions of a title that are drawn.
const PLACES: usize = 16;

/// Builds the section on the settings: first those that differ, then those that the runs share.
fn settings(runs: &[ReportedRun]) -> Markup {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in runs.iter().flat_map(|run| &run.settings) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let differs = |name: &&str| {
        runs.iter()
            .any(|run| run.setting(name) != runs[0].setting(name))
    };
    let (different, shared): (Vec<&str>, Vec<&str>) = names.into_iter().partition(differs);
    html! {
        h2 { "Settings" }
        @if !different.is_empty() {
            h3 { "What differs" }
            div.wide { table.settings {
                thead { tr { th { "setting" } @for run in runs { th { (run.name) } } } }
                tbody { @for name in different { tr {
                    th { (name) }
                    @for run in runs { td { (run.setting(name)) } }
                } } }
            } }
        }
        @if let [run, ..] = runs {
            details open[runs.len() == 1] {
                summary { @if runs.len() == 1 { "All settings" } @else { "What all of them share" } }
                div.wide { table.settings { tbody {
                    @for name in shared { tr { th { (name) } td { (run.setting(name)) } } }
                } } }
            }
        }
    }
}
