//! Draws lines with error bars, as the plots of `docs/experiments.md` are drawn by `scripts/experiments report`.
//!
//! Reads a JSON object from standard input, writes SVG to standard output:
//!
//! ```sh
//! echo '{"title": "NDCG@10", "x": "training rows", "logarithmic": true,
//!        "series": [{"name": "MSL", "points": [[1000, 0.010, 0.001], [4000, 0.025, 0.002]]}]}' |
//!     cargo run -p candle-trie-driver --example plot >plot.svg
//! ```

use std::{io, ops::Range};

use anyhow::{Context, Result};
use plotters::{coord::Shift, prelude::*};
use serde::Deserialize;

/// A plot is lines over one horizontal axis, with their names beside it.
#[derive(Deserialize)]
struct Plot {
    title: String,
    /// The name of the horizontal axis.
    x: String,
    /// Whether the horizontal axis is logarithmic.
    #[serde(default)]
    logarithmic: bool,
    series: Vec<Series>,
}

/// A line of the plot.
#[derive(Deserialize)]
struct Series {
    name: String,
    /// x, y and the standard error of y.
    points: Vec<(f64, f64, f64)>,
    /// Whether this is only there to compare with, and drawn in grey.
    #[serde(default)]
    baseline: bool,
}

const SIZE: (u32, u32) = (820, 400);
/// The width of the chart itself; the names are beside it.
const CHART: u32 = 560;
const FONT: (&str, u32) = ("sans-serif", 15);
const GREY: RGBColor = RGBColor(0x88, 0x88, 0x88);

/// Colours that those who see few can tell apart (Okabe and Ito's).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
];

fn main() -> Result<()> {
    let plot: Plot = serde_json::from_reader(io::stdin()).context("standard input is no plot")?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (chart, names) = area.split_horizontally(CHART);
        plot.draw(&chart)?;
        plot.name_series(&names)?;
        area.present()?;
    }
    print!("{svg}");
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Plot {
    /// Returns the place of x on the horizontal axis. A logarithmic axis counts doublings of 1,000.
    fn place(&self, x: f64) -> f64 {
        match self.logarithmic {
            true => (x / 1000.0).log2(),
            false => x,
        }
    }

    /// Returns the label of a place on the horizontal axis.
    fn label(&self, place: f64) -> String {
        match self.logarithmic {
            true if place.fract() == 0.0 => format!("{:.0}", 1000.0 * place.exp2()),
            true => String::new(),
            false => format!("{place:.0}"),
        }
    }

    /// Returns the ranges of both axes, with room around what is drawn.
    fn ranges(&self) -> Option<(Range<f64>, Range<f64>)> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let span = |values: &mut dyn Iterator<Item = f64>| {
            let joined = |a: Range<f64>, b: Range<f64>| a.start.min(b.start)..a.end.max(b.end);
            values.map(|value| value..value).reduce(joined)
        };
        let x = span(&mut points().map(|&(x, ..)| self.place(x)))?;
        let y = span(&mut points().flat_map(|&(_, y, error)| [y - error, y + error]))?;
        let side = 0.04 * (x.end - x.start);
        let room = 0.05 * (y.end - y.start);
        // Shares begin at 0.
        let low = match 2.0 * y.start < y.end {
            true => y.start.min(0.0),
            false => y.start - room,
        };
        Some((x.start - side..x.end + side, low..y.end + room))
    }

    fn colours(&self) -> impl Iterator<Item = (&Series, RGBColor)> {
        let mut colours = COLOURS.into_iter().cycle();
        self.series.iter().map(move |series| {
            let colour = if series.baseline {
                None
            } else {
                colours.next()
            };
            (series, colour.unwrap_or(GREY))
        })
    }

    fn draw(&self, area: &Area) -> Result<()> {
        let (x, y) = self.ranges().context("there are no points to draw")?;
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .caption(&self.title, ("sans-serif", 18))
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(0xe4, 0xe4, 0xe4))
            .axis_style(GREY)
            .label_style(FONT)
            .x_desc(&self.x)
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|place| self.label(*place))
            .draw()?;
        for (series, colour) in self.colours() {
            let line = series.points.iter().map(|&(x, y, _)| (self.place(x), y));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
            let bars = series.points.iter().filter(|(_, _, error)| *error > 0.0);
            chart.draw_series(bars.map(|&(x, y, error)| {
                ErrorBar::new_vertical(self.place(x), y - error, y, y + error, colour.filled(), 7)
            }))?;
        }
        Ok(())
    }

    /// Writes the names of the series in their colours, one under the other.
    fn name_series(&self, area: &Area) -> Result<()> {
        for ((series, colour), row) in self.colours().zip(0..) {
            let y = 60 + 24 * row;
            area.draw(&PathElement::new([(0, y), (18, y)], colour.stroke_width(2)))?;
            area.draw(&Text::new(series.name.clone(), (26, y - 8), FONT))?;
        }
        Ok(())
    }
}
