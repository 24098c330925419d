//! Drawing a sharing map.

use crate::cli::output::bar;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use kvsharer_core::{Draft, LayerId, LayerMap, Sharing};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

/// A bar for a search with the map under it as it grows; invisible where stderr is no terminal.
pub(super) struct MapBar {
    pub(super) bar: ProgressBar,
    map: Arc<Mutex<String>>,
    layers: usize,
}

impl MapBar {
    /// A bar over a thousand parts.
    pub(super) fn new(layers: usize) -> Self {
        let (bar, map) = (bar(1000, "searching"), Arc::new(Mutex::new(String::new())));
        let shown = map.clone();
        let style = bar.style();
        let with_map =
            ProgressStyle::with_template("{prefix:>12} {wide_bar} {percent:>3} % {elapsed}<{eta}\n{wide_msg}\n{map}");
        let with_map = with_map.map(|style| {
            style.with_key("map", move |_: &ProgressState, out: &mut dyn Write| {
                if let Ok(map) = shown.lock() {
                    let _ = out.write_str(&map);
                }
            })
        });
        bar.set_style(with_map.unwrap_or(style));
        Self { bar, map, layers }
    }

    pub(super) fn show(&self, draft: &Draft) {
        let width = comfy_table::Table::new().use_stderr().width().map_or(80, usize::from);
        if let Ok(mut map) = self.map.lock() {
            *map = growing(draft.sharing(), draft.dropped(), self.layers, width);
        }
    }
}

/// One sign a layer, in lines of at most `width` signs: █ owns its cache, ▀ its keys alone, ▄ its values alone, · borrows
/// both, × has no attention.
fn growing(sharing: &Sharing, dropped: &BTreeSet<LayerId>, layers: usize, width: usize) -> String {
    let (keys, values) = (sharing.keys(), sharing.values());
    let sign = |layer: LayerId| match (keys.donor(layer).is_some(), values.donor(layer).is_some()) {
        _ if dropped.contains(&layer) => '×',
        (false, false) => '█',
        (false, true) => '▀',
        (true, false) => '▄',
        (true, true) => '·',
    };
    let signs: Vec<char> = (0..layers).map(|layer| sign(layer.into())).collect();
    signs.chunks(width.max(1)).map(String::from_iter).collect::<Vec<_>>().join("\n")
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use kvsharer_core::Kv;

    #[test]
    fn the_growing_map_tells_keys_from_values_and_keeps_to_the_width() {
        let map = |kind, readers: [usize; 2]| {
            LayerMap::resolve(kind, readers.map(|reader| (reader, 0))).expect("a valid map")
        };
        let sharing = Sharing::new(map(Kv::Key, [1, 2]), map(Kv::Value, [1, 3]));
        let dropped = BTreeSet::from([LayerId(5)]);
        assert_eq!(growing(&sharing, &dropped, 6, 80), "█·▄▀█×");
        assert_eq!(growing(&sharing, &dropped, 6, 4), "█·▄▀\n█×");
    }
}
