//! A baseline of another kind: layers lose their attention altogether, and with it their cache and their projections.

use super::SearchStrategy;
use crate::search::{Ask, Change, Ground, SearchError};

/// At every step the layer whose attention is missed least. The first layer keeps its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropLayers;

impl SearchStrategy for DropLayers {
    fn name(&self) -> String {
        "drop".into()
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        while !ground.is_done() {
            let left: Vec<_> =
                ground.model().ids().skip(1).filter(|layer| !ground.draft().dropped().contains(layer)).collect();
            if left.is_empty() {
                break;
            }
            ground.announce(left.len(), left.len());
            let mut best: Option<(f64, Change)> = None;
            for layer in left {
                let change = Change::Drop { layer };
                let bound = best.map_or(f64::INFINITY, |(loss, _)| loss);
                let verdict = ground.judge(&[change], Ask { bound, ..Ask::default() })?;
                if let Some(loss) = verdict.within(bound).filter(|loss| best.is_none_or(|(least, _)| *loss < least)) {
                    best = Some((loss, change));
                }
            }
            let Some((_, change)) = best else { break };
            ground.accept(&[change])?;
        }
        Ok(())
    }
}
