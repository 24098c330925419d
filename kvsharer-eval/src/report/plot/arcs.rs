//! A sharing map as arcs over the layers.

use super::{INK, Mark, TEXT, canvas, colour, css, with_marks};
use crate::report::ReportError;
use crate::report::filters::Filters;
use kvsharer_core::LayerId;
use plotters::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type Map = BTreeMap<LayerId, LayerId>;

/// A drawing and its legend: names and colours.
type Drawing = (String, Vec<(String, String)>);

/// Arcs from every layer that reads to the layer it reads; if keys and values go to different layers, keys are above the
/// layers and values below.
pub(in crate::report) fn arcs(
    layers: usize,
    keys: &Map,
    values: &Map,
    dropped: &[LayerId],
    filters: &Filters,
) -> Result<Drawing, ReportError> {
    let same = keys == values;
    let above = keys.iter().map(|pair| (pair, 1.0, if same { "keys and values" } else { "keys" }));
    let below = values.iter().filter(|_| !same).map(|pair| (pair, -1.0, "values"));
    let all: Vec<((&LayerId, &LayerId), f64, &str)> = above.chain(below).collect();
    let tallest = all.iter().map(|((b, d), ..)| (b.0 as f64 - d.0 as f64).abs() / 2.0).fold(1.0, f64::max);
    let foot = if same { -tallest * 0.25 } else { -tallest * 1.08 };
    let (mut lines, mut dots) = (Vec::new(), Vec::new());
    let svg = canvas((520, if same { 220 } else { 300 }), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(50)
            .build_cartesian_2d(-0.7..layers as f64 - 0.3, foot..tallest * 1.08)?;
        let style = ("sans-serif", TEXT).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(TRANSPARENT)
            .label_style(style.clone())
            .axis_desc_style(style)
            .x_labels(layers.clamp(2, 8))
            .x_desc("layer")
            .x_label_formatter(&|at| if (at - at.round()).abs() < 1e-6 { format!("{at:.0}") } else { String::new() })
            .draw()?;
        for &((reader, donor), side, what) in &all {
            let (middle, radius) = ((reader.0 + donor.0) as f64 / 2.0, (reader.0 as f64 - donor.0 as f64).abs() / 2.0);
            let path: Vec<(f64, f64)> = (0..=32)
                .map(|step| f64::from(step) / 32.0 * std::f64::consts::PI)
                .map(|angle| (middle - radius * angle.cos(), side * radius * angle.sin()))
                .collect();
            let shade = colour(if side > 0.0 { 0 } else { 1 });
            chart.draw_series([PathElement::new(path, shade.stroke_width(2))])?;
            lines.push(Mark { title: format!("layer {reader} reads the {what} of layer {donor}"), tags: None });
        }
        for layer in (0..layers).map(LayerId) {
            let (title, owns) = role(layer, keys, values, dropped);
            let style = ShapeStyle::from(INK);
            let style = if owns { style.filled() } else { style.stroke_width(1) };
            chart.draw_series([Circle::new((layer.0 as f64, 0.0), 3, style)])?;
            dots.push(Mark { title, tags: None });
        }
        Ok(())
    })?;
    let svg = with_marks(&with_marks(&svg, "polyline", &lines, filters), "circle", &dots, filters);
    let legend = match same {
        true => vec![("keys and values".to_owned(), css(colour(0)))],
        false => vec![("keys, above".to_owned(), css(colour(0))), ("values, below".to_owned(), css(colour(1)))],
    };
    Ok((svg, legend))
}

/// What a layer does, and whether it has a cache of its own.
fn role(layer: LayerId, keys: &Map, values: &Map, dropped: &[LayerId]) -> (String, bool) {
    if dropped.contains(&layer) {
        return (format!("layer {layer} has no attention"), false);
    }
    let readers: BTreeSet<&LayerId> =
        keys.iter().chain(values).filter(|(_, donor)| **donor == layer).map(|(reader, _)| reader).collect();
    let reads = match (keys.get(&layer), values.get(&layer)) {
        (None, None) => "has its own cache".to_owned(),
        (Some(key), Some(value)) if key == value => format!("reads layer {key}"),
        (key, value) => {
            let of = |donor: Option<&LayerId>| donor.map_or("its own".into(), |donor| format!("layer {donor}'s"));
            format!("reads {} keys and {} values", of(key), of(value))
        }
    };
    let by = match readers.is_empty() {
        true => String::new(),
        false => format!(", is read by {}", readers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    let owns = !(keys.contains_key(&layer) && values.contains_key(&layer));
    (format!("layer {layer} {reads}{by}"), owns)
}
