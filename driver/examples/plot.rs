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
use plotters::{coord::ranged1d::ValueFormatter, prelude::*};
use serde::Deserialize;

/// What is drawn.
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

const SIZE: (u32, u32) = (640, 400);
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
        let mut builder = ChartBuilder::on(&area);
        builder
            .margin(12)
            .caption(&plot.title, ("sans-serif", 18))
            .x_label_area_size(40)
            .y_label_area_size(56);
        let (x, y) = plot.ranges().context("there are no points to draw")?;
        if plot.logarithmic {
            plot.draw(builder.build_cartesian_2d(x.log_scale(), y)?)?;
        } else {
            plot.draw(builder.build_cartesian_2d(x, y)?)?;
        }
        area.present()?;
    }
    print!("{svg}");
    Ok(())
}

impl Plot {
    /// The ranges of both axes, with room around what is drawn.
    fn ranges(&self) -> Option<(Range<f64>, Range<f64>)> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let least = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::min);
        let most = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max);
        let (left, right) = (
            least(&mut points().map(|p| p.0))?,
            most(&mut points().map(|p| p.0))?,
        );
        let (low, high) = (
            least(&mut points().map(|p| p.1 - p.2))?,
            most(&mut points().map(|p| p.1 + p.2))?,
        );
        let x = match self.logarithmic {
            true => left / 1.15..right * 1.15,
            false => left..right,
        };
        let room = 0.05 * (high - low);
        // Shares begin at 0.
        let low = if low >= 0.0 && low < 0.5 * high {
            0.0
        } else {
            low - room
        };
        Some((x, low..high + room))
    }

    fn draw<'a, X>(
        &self,
        mut chart: ChartContext<
            'a,
            SVGBackend<'a>,
            Cartesian2d<X, plotters::coord::types::RangedCoordf64>,
        >,
    ) -> Result<()>
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(0xe4, 0xe4, 0xe4))
            .axis_style(GREY)
            .label_style(FONT)
            .x_desc(&self.x)
            .x_labels(7)
            .y_labels(6)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()?;
        let mut colours = COLOURS.iter().cycle();
        for series in &self.series {
            let colour = match series.baseline {
                true => GREY,
                false => *colours.next().unwrap_or(&GREY),
            };
            let line = series.points.iter().map(|&(x, y, _)| (x, y));
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
                .label(&series.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
            let bars = series.points.iter().filter(|(_, _, error)| *error > 0.0);
            chart.draw_series(bars.map(|&(x, y, error)| {
                ErrorBar::new_vertical(x, y - error, y, y + error, colour.filled(), 7)
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .label_font(FONT)
            .draw()?;
        Ok(())
    }
}
