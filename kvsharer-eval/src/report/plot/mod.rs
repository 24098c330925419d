//! Plots as SVG: plotters draws, and every mark gets its value for the pointer and its tags for the filters.
//!
//! Ink and grid have colours of their own that the page's style sheet replaces, so that plots follow light and dark.

mod arcs;
mod heat;
mod xy;

pub(super) use arcs::arcs;
pub(super) use heat::heat;
pub(super) use xy::{Axis, Chart, Point, Series};

use super::ReportError;
use super::filters::Filters;
use super::table::{Table, Tags};
use minijinja::HtmlEscape;
use plotters::coord::Shift;
use plotters::prelude::*;

/// A plot and the table behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub about: String,
    /// The drawing.
    pub svg: String,
    /// Names and colours of its series.
    pub legend: Vec<(String, String)>,
    /// The values.
    pub table: Table,
}

/// Text, axes and whatever else is not data; page.css replaces it.
const INK: RGBColor = RGBColor(1, 1, 1);

/// Grid lines; page.css replaces it.
const GRID: RGBColor = RGBColor(2, 2, 2);

/// Font size of all text.
const TEXT: u32 = 17;

/// Colours of series, told apart on light and dark and by most colour-blind people (after Okabe and Ito, and Tol).
const COLOURS: [RGBColor; 12] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(140, 107, 177),
    RGBColor(127, 127, 127),
    RGBColor(68, 170, 153),
    RGBColor(204, 102, 119),
    RGBColor(153, 153, 51),
    RGBColor(150, 90, 40),
];

/// The colour of a series by its index; they come round again.
pub(super) fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// As style sheets write it.
pub(super) fn css(colour: RGBColor) -> String {
    format!("#{:02x}{:02x}{:02x}", colour.0, colour.1, colour.2)
}

/// What a mark says to the pointer, and what it is filtered by.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mark {
    pub(super) title: String,
    pub(super) tags: Option<Tags>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws on a canvas of `width` x `height` pixels.
fn canvas(
    (width, height): (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        let drawn = draw(&area).and_then(|()| Ok(area.present()?));
        drawn.map_err(|error| ReportError::Plot(error.to_string()))?;
    }
    Ok(svg)
}

/// Puts marks around the last elements of a kind, which were drawn in their order.
fn with_marks(svg: &str, element: &str, marks: &[Mark], filters: &Filters) -> String {
    let start = format!("<{element} ");
    let drawn = svg.lines().filter(|line| line.starts_with(&start)).count();
    let mut skip = drawn.saturating_sub(marks.len());
    let mut marks = marks.iter();
    let mut marked = String::with_capacity(svg.len() * 2);
    for line in svg.lines() {
        let is_mark = line.starts_with(&start) && {
            let skipped = skip > 0;
            skip = skip.saturating_sub(1);
            !skipped
        };
        match is_mark.then(|| marks.next()).flatten() {
            Some(mark) => {
                let data =
                    mark.tags.as_ref().map_or_else(String::new, |t| format!(" data-t=\"{}\"", filters.indices(t)));
                let title = HtmlEscape(&mark.title);
                let line = line.strip_suffix("/>").unwrap_or(line);
                marked += &format!("{line}{data}><title>{title}</title></{element}>\n");
            }
            None => {
                marked += line;
                marked.push('\n');
            }
        }
    }
    marked
}
