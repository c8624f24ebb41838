//! Draws the charts as SVG.

use std::ops::Range;

use anyhow::Result;
use maud::{Markup, PreEscaped, html};
use plotters::{coord::Shift, prelude::*};

use crate::evaluate::ranking::Estimate;

/// Width and height of a chart, in the units of its SVG.
const SIZE: (u32, u32) = (420, 260);
const FONT: (&str, u32) = ("sans-serif", 17);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
const AXIS: RGBColor = RGBColor(0x88, 0x88, 0x88);

/// The colour of baselines.
pub const BASELINE: RGBColor = RGBColor(0x77, 0x77, 0x77);

/// Colours that colour-blind readers can tell apart (Okabe and Ito's).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
];

/// Returns a colour for each of so many runs.
pub fn colours(count: usize) -> Vec<RGBColor> {
    let hue = |index| {
        let (red, green, blue) = HSLColor(index as f64 / count as f64, 0.7, 0.42).rgb();
        RGBColor(red, green, blue)
    };
    match COLOURS.get(..count) {
        Some(colours) => colours.to_vec(),
        None => (0..count).map(hue).collect(),
    }
}

/// Returns a colour as CSS writes it.
pub fn css(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Builds a figure of a chart and its title. Without a chart it says that nothing was recorded.
pub fn figure(title: &str, chart: Option<PreEscaped<String>>) -> Markup {
    html! {
        figure {
            figcaption { (title) }
            @if let Some(chart) = chart {
                div role="img" aria-label=(title) { (chart) }
            } @else {
                p.missing { "Nothing was recorded." }
            }
        }
    }
}

/// The values of one run over its steps.
pub struct Curve {
    /// The run's colour.
    pub colour: RGBColor,
    /// Steps and values.
    pub points: Vec<(f64, f64)>,
}

/// The values of one run in several categories.
pub struct Reached {
    /// The run's colour.
    pub colour: RGBColor,
    /// A value for each category, where there is one.
    pub values: Vec<Option<Estimate>>,
}

/// Draws values against steps; `None` where there is nothing to draw. Points are marked where there are few.
pub fn curves(curves: &[Curve]) -> Result<Option<String>> {
    let finite = |curve: &Curve| -> Vec<(f64, f64)> {
        let points = curve.points.iter().copied();
        points.filter(|(x, y)| (x + y).is_finite()).collect()
    };
    let finite: Vec<(RGBColor, Vec<(f64, f64)>)> = curves
        .iter()
        .map(|curve| (curve.colour, finite(curve)))
        .collect();
    let points = || finite.iter().flat_map(|(_, points)| points);
    let Some(steps) = span(points().map(|(x, _)| *x)) else {
        return Ok(None);
    };
    let values = span(points().map(|(_, y)| *y)).unwrap_or_default();
    let svg = draw(|area| {
        let decimals = decimals(&values);
        let mut chart = builder(area).build_cartesian_2d(steps, padded(values))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(AXIS)
            .label_style(FONT)
            .x_labels(5)
            .y_labels(5)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|value| format!("{value:.decimals$}"))
            .draw()?;
        for (colour, points) in &finite {
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
            if points.len() <= FEW {
                let marks = points.iter().map(|&at| Circle::new(at, 3, colour.filled()));
                chart.draw_series(marks)?;
            }
        }
        Ok(())
    })?;
    Ok(Some(svg))
}

/// The largest number of points that are marked.
const FEW: usize = 40;

/// Draws values with one standard error to either side, run beside run in each category. Values that are not finite are
/// left out.
pub fn estimates(categories: &[String], runs: &[Reached], from_zero: bool) -> Result<String> {
    let finite = |Estimate { mean, error }: Estimate| {
        mean.is_finite().then(|| Estimate {
            mean,
            error: error.filter(|error| error.is_finite()),
        })
    };
    let runs: Vec<Reached> = runs
        .iter()
        .map(|Reached { colour, values }| Reached {
            colour: *colour,
            values: values.iter().map(|value| value.and_then(finite)).collect(),
        })
        .collect();
    let ends = |Estimate { mean, error }: &Estimate| {
        let error = error.unwrap_or(0.0);
        [mean - error, mean + error]
    };
    let values = runs.iter().flat_map(|run| run.values.iter().flatten());
    let zero = from_zero.then_some(0.0);
    let range = span(values.flat_map(ends).chain(zero)).unwrap_or(0.0..1.0);
    draw(|area| {
        let decimals = decimals(&range);
        let width = categories.len() as f64;
        let label = |x: &f64| match x.fract() {
            0.0 => categories.get(*x as usize).cloned().unwrap_or_default(),
            _ => String::new(),
        };
        let mut chart = builder(area).build_cartesian_2d(-0.5..width - 0.5, padded(range))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(AXIS)
            .label_style(FONT)
            .x_labels(categories.len() + 1)
            .set_tick_mark_size(LabelAreaPosition::Bottom, 3)
            .y_labels(5)
            .x_label_formatter(&label)
            .y_label_formatter(&|value| format!("{value:.decimals$}"))
            .draw()?;
        for (index, run) in runs.iter().enumerate() {
            let place = (index as f64 + 0.5) / runs.len() as f64 - 0.5;
            let told = run.values.iter().enumerate();
            let told = told.filter_map(|(category, value)| Some((category, (*value)?)));
            chart.draw_series(told.map(|(category, value)| {
                let [low, high] = ends(&value);
                let x = category as f64 + 0.8 * place;
                ErrorBar::new_vertical(x, low, value.mean, high, run.colour.filled(), 6)
            }))?;
        }
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(plot: impl FnOnce(&Area) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        plot(&area)?;
        area.present()?;
    }
    Ok(svg)
}

fn builder<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(6).margin_right(14);
    builder.x_label_area_size(28).y_label_area_size(54);
    builder
}

/// Returns the least and the greatest value.
fn span(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    values
        .map(|value| value..value)
        .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
}

/// Adds room above and below. Values that are all the same are in the middle.
fn padded(range: Range<f64>) -> Range<f64> {
    let room = match range.end - range.start {
        0.0 => range.end.abs().max(1.0) * 0.1,
        span => span * 0.06,
    };
    let start = match range.start {
        0.0 => 0.0,
        start => start - room,
    };
    start..range.end + room
}

/// Returns how many decimals tell five labels of an axis apart.
fn decimals(range: &Range<f64>) -> usize {
    let Range { start, end } = padded(range.clone());
    let step = (end - start) / 5.0;
    (1.0 - step.log10().floor()).clamp(0.0, 6.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve {
            colour: BASELINE,
            points: points.to_vec(),
        }
    }

    #[test]
    fn every_shape_of_curve_is_drawn() {
        for points in [
            &[(1.0, 2.0)][..],
            &[(1.0, 2.0), (2.0, 2.0)],
            &[(1.0, 0.0), (2.0, 0.0)],
            &[(1.0, 1e-9), (2.0, 1e9)],
            &[(1.0, f64::NAN), (2.0, -3.0), (3.0, f64::INFINITY)],
        ] {
            let svg = curves(&[curve(points)]).unwrap().unwrap();
            assert!(svg.starts_with("<svg") && svg.contains("#777777"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        assert_eq!(curves(&[curve(&[])]).unwrap(), None);
        assert_eq!(curves(&[curve(&[(1.0, f64::NAN)])]).unwrap(), None);
    }

    #[test]
    fn estimates_are_drawn_where_they_are() {
        let categories = ["@1".to_owned(), "@5".to_owned()];
        let value = |mean, error| Some(Estimate { mean, error });
        let reached = |values: &[Option<Estimate>]| Reached {
            colour: BASELINE,
            values: values.to_vec(),
        };
        let bars = |values: &[Option<Estimate>]| {
            let svg = estimates(&categories, &[reached(values)], true).unwrap();
            for category in &categories {
                assert!(svg.contains(category), "{svg}");
            }
            svg.matches("#777777").count()
        };
        let both = bars(&[value(0.1, Some(0.02)), value(0.2, None)]);
        assert!(both > 0 && both == 2 * bars(&[value(0.1, Some(0.02)), None]));
        assert_eq!(bars(&[None, None]), 0);
        let diverged = value(f64::NAN, Some(f64::NAN));
        assert_eq!(bars(&[diverged, value(f64::INFINITY, None)]), 0);
    }

    #[test]
    fn axes_have_as_many_digits_as_they_need() {
        assert_eq!(decimals(&(0.0..0.1)), 3);
        assert_eq!(decimals(&(5.0..9.0)), 2);
        assert_eq!(decimals(&(0.0..2_000.0)), 0);
        assert_eq!(colours(3), COLOURS[..3]);
        let many = colours(20);
        assert!((1..20).all(|index| !many[..index].contains(&many[index])));
    }
}
