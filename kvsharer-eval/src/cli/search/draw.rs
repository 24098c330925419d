//! Drawing a sharing map.

use kvsharer_core::{LayerMap, Sharing};

/// Keys and values, one line each if they differ.
pub(in crate::cli) fn draw_sharing(sharing: &Sharing, layers: usize) -> String {
    match sharing.keys() == sharing.values() {
        true => draw_map(sharing.keys(), layers),
        false => {
            format!("keys, {}values, {}", draw_map(sharing.keys(), layers), draw_map(sharing.values(), layers))
        }
    }
}

/// One line a donor: who reads it.
fn draw_map(map: &LayerMap, layers: usize) -> String {
    let line: String = (0..layers).map(|layer| if map.donor(layer.into()).is_some() { '·' } else { '█' }).collect();
    let mut text = format!("layers 0 to {}, █ owns its cache, · borrows\n{line}\n", layers.saturating_sub(1));
    let mut donors: Vec<_> = map.iter().map(|(_, donor)| donor).collect();
    donors.sort();
    donors.dedup();
    for donor in donors {
        let readers: Vec<String> =
            map.iter().filter(|(_, d)| *d == donor).map(|(reader, _)| reader.to_string()).collect();
        text += &format!("  {donor} is read by {}\n", readers.join(", "));
    }
    text
}
