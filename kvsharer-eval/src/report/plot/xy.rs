//! Points and lines over two axes.

use super::{Area, GRID, INK, Mark, TEXT, canvas, colour, css, with_marks};
use crate::report::ReportError;
use crate::report::filters::Filters;
use crate::report::table::Tags;
use plotters::prelude::*;

/// An axis.
#[derive(Clone, Debug)]
pub(in crate::report) struct Axis {
    pub(in crate::report) name: String,
    /// Whether it is logarithmic; all values must be above 0 then.
    pub(in crate::report) log: bool,
    /// Whether it starts at 0.
    pub(in crate::report) zero: bool,
    pub(in crate::report) format: fn(f64) -> String,
}

/// Points of one colour.
#[derive(Clone, Debug, Default)]
pub(in crate::report) struct Series {
    pub(in crate::report) name: String,
    /// Whether a line joins them, in the order of x.
    pub(in crate::report) joined: bool,
    pub(in crate::report) points: Vec<Point>,
}

/// A point.
#[derive(Clone, Debug)]
pub(in crate::report) struct Point {
    pub(in crate::report) x: f64,
    pub(in crate::report) y: f64,
    /// How far y may be off.
    pub(in crate::report) range: Option<(f64, f64)>,
    /// Drawn as a ring.
    pub(in crate::report) hollow: bool,
    pub(in crate::report) title: String,
    pub(in crate::report) tags: Option<Tags>,
}

/// A chart.
#[derive(Clone, Debug)]
pub(in crate::report) struct Chart {
    pub(in crate::report) x: Axis,
    pub(in crate::report) y: Axis,
    pub(in crate::report) series: Vec<Series>,
    /// A line behind the points, in the order given.
    pub(in crate::report) front: Vec<(f64, f64)>,
}

impl Axis {
    pub(in crate::report) fn new(name: impl Into<String>, format: fn(f64) -> String) -> Self {
        Self { name: name.into(), log: false, zero: false, format }
    }

    /// Logarithmic if the values are positive and spread over more than `times`.
    pub(in crate::report) fn log_if(mut self, values: impl Iterator<Item = f64> + Clone, times: f64) -> Self {
        let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
        self.log = low > 0.0 && high / low > times;
        self
    }

    fn place(&self, value: f64) -> f64 {
        if self.log { value.log2() } else { value }
    }

    fn label(&self, place: f64) -> String {
        (self.format)(if self.log { place.exp2() } else { place })
    }

    /// The range of places, with some room around them.
    fn range(&self, values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for place in values.map(|value| self.place(value)).filter(|place| place.is_finite()) {
            (low, high) = (low.min(place), high.max(place));
        }
        if low > high {
            return 0.0..1.0;
        }
        if self.zero && !self.log {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        // Enough for floats to tell places apart, however near to each other the values are.
        let least = if self.log { 0.1 } else { (low.abs().max(high.abs()) * 1e-4).max(1e-9) };
        let room = ((high - low) * 0.08).max(least);
        if self.zero && !self.log && low == 0.0 { 0.0..high + room } else { low - room..high + room }
    }
}

impl Chart {
    /// A chart without the points that no axis can hold.
    pub(in crate::report) fn new(x: Axis, y: Axis, mut series: Vec<Series>, mut front: Vec<(f64, f64)>) -> Self {
        const MOST: f64 = 1e30;
        let fits = |x: f64, y: f64| x.abs() < MOST && y.abs() < MOST;
        for series in &mut series {
            series.points.retain(|point| fits(point.x, point.y));
            for point in &mut series.points {
                point.range = point.range.filter(|&(low, high)| fits(low, high));
            }
        }
        front.retain(|&(x, y)| fits(x, y));
        Self { x, y, series, front }
    }

    /// Names and colours.
    pub(in crate::report) fn legend(&self) -> Vec<(String, String)> {
        let drawn = self.series.iter().enumerate().filter(|(_, series)| !series.points.is_empty());
        drawn.map(|(index, series)| (series.name.clone(), css(colour(index)))).collect()
    }

    pub(in crate::report) fn svg(&self, filters: &Filters) -> Result<String, ReportError> {
        let (mut lines, mut dots) = (Vec::new(), Vec::new());
        let svg = canvas((520, 360), |area| self.draw(area, &mut lines, &mut dots))?;
        Ok(with_marks(&with_marks(&svg, "polyline", &lines, filters), "circle", &dots, filters))
    }

    fn draw(
        &self,
        area: &Area<'_>,
        lines: &mut Vec<Mark>,
        dots: &mut Vec<Mark>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let ranges = points().flat_map(|point| point.range.map_or([point.y, point.y], |(low, high)| [low, high]));
        let (xs, ys) = (self.x.range(points().map(|point| point.x)), self.y.range(ranges));
        let place = |x: f64, y: f64| (self.x.place(x), self.y.place(y));
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(52)
            .y_label_area_size(84)
            .build_cartesian_2d(xs, ys.clone())?;
        let style = ("sans-serif", TEXT).into_font().color(&INK);
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(style.clone())
            .axis_desc_style(style)
            .x_labels(6)
            .y_labels(7)
            .x_desc(&self.x.name)
            .y_desc(&self.y.name)
            .x_label_formatter(&|&at| self.x.label(at))
            .y_label_formatter(&|&at| self.y.label(at))
            .draw()?;
        let front: Vec<(f64, f64)> = self.front.iter().map(|&(x, y)| place(x, y)).collect();
        if front.len() > 1 {
            chart.draw_series([PathElement::new(front, INK.mix(0.5).stroke_width(1))])?;
        }
        for (index, series) in self.series.iter().enumerate() {
            for point in &series.points {
                // What falls below a logarithmic axis ends at its foot.
                let Some((low, high)) = point.range.filter(|(low, high)| high > low) else { continue };
                let (x, low) = place(point.x, low);
                let ends = vec![(x, if low.is_finite() { low } else { ys.start }), place(point.x, high)];
                chart.draw_series([PathElement::new(ends, colour(index).stroke_width(1))])?;
                lines.push(Mark { title: point.title.clone(), tags: point.tags.clone() });
            }
            if series.joined && series.points.len() > 1 {
                let mut joined: Vec<&Point> = series.points.iter().collect();
                joined.sort_by(|a, b| a.x.total_cmp(&b.x));
                let path: Vec<(f64, f64)> = joined.iter().map(|point| place(point.x, point.y)).collect();
                chart.draw_series([PathElement::new(path, colour(index).stroke_width(2))])?;
                let tags = series.points.first().and_then(|point| point.tags.clone());
                lines.push(Mark { title: series.name.clone(), tags });
            }
        }
        // The first series is on top.
        for (index, series) in self.series.iter().enumerate().rev() {
            for point in &series.points {
                let (style, at) = (ShapeStyle::from(colour(index)), place(point.x, point.y));
                let style = if point.hollow { style.stroke_width(2) } else { style.filled() };
                chart.draw_series([Circle::new(at, 5, style)])?;
                dots.push(Mark { title: point.title.clone(), tags: point.tags.clone() });
            }
        }
        Ok(())
    }
}
