//! A matrix as colours.

use super::{INK, Mark, TEXT, canvas, css, with_marks};
use crate::report::ReportError;
use crate::report::filters::Filters;
use plotters::prelude::*;

/// A drawing and its legend: names and colours.
type Drawing = (String, Vec<(String, String)>);

/// Values of (donor, borrower) as colours, and a legend of the least, middle and greatest; donors from left to right,
/// borrowers upwards.
pub(in crate::report) fn heat(
    layers: usize,
    values: &[(usize, usize, f64)],
    filters: &Filters,
) -> Result<Drawing, ReportError> {
    let low = values.iter().map(|value| value.2).fold(f64::INFINITY, f64::min);
    let high = values.iter().map(|value| value.2).fold(f64::NEG_INFINITY, f64::max);
    // Equal values, or one alone, have the colour of the middle.
    let part = |value: f64| if high > low { (value - low) / (high - low) } else { 0.5 };
    let colour = |value: f64| ViridisRGB.get_color(part(value) as f32);
    let size = layers.max(1) as f64;
    let svg = canvas((460, 440), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(52)
            .y_label_area_size(58)
            .build_cartesian_2d(0.0..size, 0.0..size)?;
        let style = ("sans-serif", TEXT).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(INK)
            .label_style(style.clone())
            .axis_desc_style(style)
            .x_labels(6)
            .y_labels(6)
            .x_desc("layer whose cache would be read")
            .y_desc("layer that would read it")
            .x_label_formatter(&|at| format!("{at:.0}"))
            .y_label_formatter(&|at| format!("{at:.0}"))
            .draw()?;
        chart.draw_series(values.iter().map(|&(donor, borrower, value)| {
            let (x, y) = (donor as f64, borrower as f64);
            Rectangle::new([(x, y), (x + 1.0, y + 1.0)], colour(value).filled())
        }))?;
        Ok(())
    })?;
    let title = |&(donor, borrower, value): &(usize, usize, f64)| Mark {
        title: format!("{donor}, {borrower}: {value:.4}"),
        tags: None,
    };
    let marks: Vec<Mark> = values.iter().map(title).collect();
    let legend = [low, (low + high) / 2.0, high];
    let legend =
        if values.is_empty() { Vec::new() } else { legend.map(|at| (format!("{at:.3}"), css(colour(at)))).into() };
    Ok((with_marks(&svg, "rect", &marks, filters), legend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_a_cell_with_its_value_even_if_all_are_equal() {
        for values in [&[][..], &[(0, 1, 3.0)], &[(0, 1, 2.0), (0, 2, 2.0)], &[(0, 1, 1.0), (1, 2, 4.0)]] {
            let (svg, legend) = heat(3, values, &Filters::default()).expect("a drawing");
            assert_eq!(svg.matches("<rect ").count(), values.len());
            for (donor, borrower, value) in values {
                assert!(svg.contains(&format!("<title>{donor}, {borrower}: {value:.4}</title>")), "{svg}");
            }
            assert_eq!(legend.is_empty(), values.is_empty());
        }
    }
}
