//! Builds the section on how well the runs recommend, beside each other and user by user.

use std::collections::BTreeSet;

use anyhow::Result;
use maud::{Markup, PreEscaped, html};
use plotters::style::RGBColor;

use super::{
    charts::{BASELINE, Reached, estimates, figure},
    paired::Difference,
    run::{Shown, swatch},
};
use crate::evaluate::{
    comparison::Line,
    ranking::{Estimate, Measures, common_cutoff, pruned_name},
};

/// Builds the section on runs of one catalogue.
pub fn recommending(runs: &[Shown]) -> Result<Markup> {
    let (evaluated, others): (Vec<&Shown>, Vec<&Shown>) = runs
        .iter()
        .partition(|shown| shown.run.evaluated().is_some());
    let measures = match evaluated.is_empty() {
        true => html! {},
        false => measures(&evaluated)?,
    };
    Ok(html! {
        h2 { "How well they recommend" }
        @for shown in others {
            p.missing {
                (swatch(shown)) " has not been evaluated yet: "
                code { "msl evaluate " (shown.run.path.display()) }
            }
        }
        (measures)
        (decoded(&evaluated))
        @if evaluated.len() > 1 { (paired(&evaluated)) }
    })
}

/// Builds the table of how each run was decoded.
fn decoded(runs: &[&Shown]) -> Markup {
    let decodings: Vec<_> = runs.iter().map(|shown| shown.run.decoding()).collect();
    let Some(first) = decodings.iter().flatten().next() else {
        return html! {};
    };
    let names = first.named().into_iter().map(|(name, _)| name);
    let alike =
        (decodings.iter()).all(|decoding| decoding.is_some_and(|decoding| decoding.is_like(first)));
    html! {
        h3 { "How they were decoded" }
        @if !alike {
            p { strong { "The runs were not searched alike, or not on the same rows: compare with care." } }
        }
        div.wide { table.settings {
            thead { tr { th { "run" } @for name in names { th { (name) } } } }
            tbody { @for (shown, decoding) in runs.iter().zip(&decodings) { tr {
                th { (swatch(shown)) }
                @if let Some(decoding) = decoding {
                    @for (_, value) in decoding.named() { td { (value) } }
                } @else {
                    td colspan=(first.named().len()) { "its evaluation, of an earlier version, does not say" }
                }
            } } }
        } }
    }
}

/// A function that returns one measure for each length of the lists.
type ByCutoff = fn(&Measures) -> &[(usize, Estimate)];

/// Builds the charts and the tables of runs that were evaluated.
fn measures(runs: &[&Shown]) -> Result<Markup> {
    let first = runs[0].run;
    let baselines = ["uniform", "popularity", "item graph"].map(|name| first.baseline(name));
    let baselines: Vec<&Line> = baselines.into_iter().flatten().collect();
    let popularity = first.baseline("popularity");
    let lines: Vec<(RGBColor, &Line)> = (popularity.map(|line| (BASELINE, line)).into_iter())
        .chain(
            runs.iter()
                .filter_map(|shown| Some((shown.colour, shown.run.evaluated()?))),
        )
        .collect();
    let chart = |title: &str, chart: Result<String>| -> Result<Markup> {
        Ok(figure(title, Some(PreEscaped(chart?))))
    };
    Ok(html! {
        p {
            (evaluated_on(runs))
            " Bars are one standard error over the users to either side."
            @if popularity.is_some() {
                " Grey is recommending what is popular: a run that is not better has not learned."
            }
        }
        div.charts {
            (chart("HR@K: users whose next item was among the first K", by_cutoff(&lines, |measures| &measures.hit_rate))?)
            (chart("NDCG@K: the same, discounted by place", by_cutoff(&lines, |measures| &measures.ndcg))?)
            (chart("Item NLL: mean −ln p of the next item, in nats (lower is better)", item_nll(&lines))?)
        }
        (table(&baselines, runs))
        (by_target(&baselines, runs))
    })
}

/// Says which users the measures are of.
fn evaluated_on(runs: &[&Shown]) -> Markup {
    let evaluations = runs.iter().map(|shown| shown.run.evaluation.as_ref());
    let mut all = evaluations.map(|evaluation| {
        let evaluation = evaluation?;
        Some((evaluation.users, evaluation.evaluated_on.as_deref()))
    });
    let first = all.next().flatten();
    html! {
        @if all.all(|other| other == first) {
            @if let Some((users, split)) = first { (users) " users" @if let Some(split) = split { " (" (split) ")" } "." }
        } @else {
            strong { "The runs were not evaluated on the same users: compare with care." }
        }
    }
}

fn by_cutoff(lines: &[(RGBColor, &Line)], value: ByCutoff) -> Result<String> {
    let lists = || lines.iter().map(|(_, line)| value(&line.measures));
    let longest = lists().max_by_key(|list| list.len()).unwrap_or_default();
    let at = |line: &Line, cutoff: usize| {
        let mut list = value(&line.measures).iter();
        list.find(|(found, _)| *found == cutoff)
            .map(|(_, value)| *value)
    };
    let reached = |(colour, line): &(RGBColor, &Line)| Reached {
        colour: *colour,
        values: longest
            .iter()
            .map(|(cutoff, _)| at(line, *cutoff))
            .collect(),
    };
    let categories: Vec<String> = longest
        .iter()
        .map(|(cutoff, _)| format!("@{cutoff}"))
        .collect();
    estimates(
        &categories,
        &lines.iter().map(reached).collect::<Vec<_>>(),
        true,
    )
}

fn item_nll(lines: &[(RGBColor, &Line)]) -> Result<String> {
    let reached = |(colour, line): &(RGBColor, &Line)| Reached {
        colour: *colour,
        values: vec![Some(line.measures.item_nll)],
    };
    let reached: Vec<Reached> = lines.iter().map(reached).collect();
    estimates(&["item NLL".into()], &reached, false)
}

fn own_lines<'a>(runs: &'a [&Shown]) -> impl Iterator<Item = &'a Line> {
    runs.iter().filter_map(|shown| shown.run.evaluated())
}

fn table(baselines: &[&Line], runs: &[&Shown]) -> Markup {
    let every = || baselines.iter().copied().chain(own_lines(runs));
    let most = every()
        .map(|line| line.measures.named())
        .max_by_key(Vec::len);
    let names: Vec<String> = most.into_iter().flatten().map(|(name, _)| name).collect();
    let tops: BTreeSet<usize> = (runs.iter())
        .flat_map(|shown| shown.run.pruned())
        .map(|pruned| pruned.top)
        .collect();
    let pruned = |shown: Option<&Shown>, top: usize| {
        let mut pruned = shown.map_or(&[][..], |shown| shown.run.pruned()).iter();
        let found = pruned.find(|pruned| pruned.top == top);
        found.map_or_else(|| "–".into(), ToString::to_string)
    };
    let cells = |line: &Line, shown: Option<&Shown>| {
        html! {
            (estimates_of(&line.measures.named(), &names))
            @for &top in &tops { td { (pruned(shown, top)) } }
            td { @if let Some(temperature) = line.temperature { (format!("{temperature:.3}")) } @else { "–" } }
            td { @if let Some(users) = line.users_per_second { (format!("{users:.1}")) } @else { "–" } }
        }
    };
    html! {
        div.wide { table {
            thead { tr {
                th { "run" }
                @for name in &names { th { (name) } }
                @for &top in &tops { th { (pruned_name(top)) } }
                th { "temperature" }
                th { "users/s" }
            } }
            tbody {
                @for line in baselines { tr.baseline { th { (line.name) } (cells(line, None)) } }
                @for shown in runs {
                    @if let Some(line) = shown.run.evaluated() { tr { th { (swatch(shown)) } (cells(line, Some(shown))) } }
                }
            }
        } }
        @if !tops.is_empty() {
            p {
                "Pruned are the users whose next item is in the true top K, as the exact search finds it, and nowhere in "
                "the list of the beam search."
            }
        }
    }
}

/// Builds a cell for each name.
fn estimates_of(measures: &[(String, Estimate)], names: &[String]) -> Markup {
    let value = |name: &String| measures.iter().find(|(found, _)| found == name);
    html! {
        @for name in names {
            td { @if let Some((_, value)) = value(name) { (estimate(*value)) } @else { "–" } }
        }
    }
}

/// Builds the table that compares targets that occur in training rows with those that do not.
fn by_target(baselines: &[&Line], runs: &[&Shown]) -> Markup {
    let evaluations = runs
        .iter()
        .filter_map(|shown| shown.run.evaluation.as_ref());
    let mut counts = evaluations.map(|evaluation| evaluation.targets);
    let first = counts.next().unwrap_or_default();
    let differ = counts.any(|other| other != first);
    if first.not_in_training == 0 && !differ {
        return html! {};
    }
    let every = || baselines.iter().copied().chain(own_lines(runs));
    let cutoff = common_cutoff(every().map(|line| &line.measures));
    let names = every().next().map(|line| line.measures.at(cutoff));
    let names: Vec<String> = (names.into_iter().flatten().map(|(name, _)| name)).collect();
    let cells = |line: &Line| {
        html! {
            @for (_, measures) in line.targets.named() {
                (estimates_of(&measures.as_ref().map(Measures::named).unwrap_or_default(), &names))
            }
        }
    };
    html! {
        h3 { "By whether the next item occurs in training rows" }
        p {
            @if differ {
                "The runs were not trained and evaluated on the same rows, or an earlier version evaluated some of them."
            } @else {
                (first.sentence())
            }
        }
        div.wide { table {
            thead {
                tr { th {} @for (kind, _) in first.named() { th colspan=(names.len()) { (kind) } } }
                tr { th { "run" } @for _ in first.named() { @for name in &names { th { (name) } } } }
            }
            tbody {
                @for line in baselines { tr.baseline { th { (line.name) } (cells(line)) } }
                @for shown in runs {
                    @if let Some(line) = shown.run.evaluated() { tr { th { (swatch(shown)) } (cells(line)) } }
                }
            }
        } }
    }
}

/// Builds the table that compares each run with the first, on the same users.
fn paired(runs: &[&Shown]) -> Markup {
    let [first, others @ ..] = runs else {
        return html! {};
    };
    let cutoff = common_cutoff(own_lines(runs).map(|line| &line.measures));
    let row = |shown: &Shown| {
        let ranks = (shown.run.ranks.as_deref(), first.run.ranks.as_deref());
        let difference = match ranks {
            (Some(run), Some(other)) => Difference::of(run, other, cutoff),
            _ => None,
        };
        html! { tr {
            th { (swatch(shown)) }
            @if let Some(difference) = difference {
                td { (signed(difference.hit_rate)) }
                td { (signed(difference.ndcg)) }
                td { (signed(difference.item_nll)) }
            } @else {
                td colspan="3" { "not on the same users, or without ranks.csv" }
            }
        } }
    };
    html! {
        h3 { "User by user, beside " (swatch(first)) }
        p {
            "The mean of the differences of each user, with its standard error. Runs mostly find the same users easy, so "
            "that these errors are smaller than those above. Bold is more than two standard errors from 0."
        }
        div.wide { table {
            thead { tr {
                th { "run" }
                th { "HR@" (cutoff) }
                th { "NDCG@" (cutoff) }
                th { "item NLL" }
            } }
            tbody { @for shown in others { (row(shown)) } }
        } }
    }
}

fn estimate(Estimate { mean, error }: Estimate) -> Markup {
    html! {
        (format!("{mean:.4}"))
        @if let Some(error) = error { span.error { " ±" (format!("{error:.4}")) } }
    }
}

fn signed(Estimate { mean, error }: Estimate) -> Markup {
    let clear = error.is_some_and(|error| mean.abs() > 2.0 * error);
    html! {
        @if clear { strong { (format!("{mean:+.4}")) } } @else { (format!("{mean:+.4}")) }
        @if let Some(error) = error { span.error { " ±" (format!("{error:.4}")) } }
    }
}
