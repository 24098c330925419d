//! Layers spread evenly over the model read their neighbour below, as in cross-layer attention (CLA, arXiv 2405.12981),
//! which trains such models; here nothing is trained, so this is a control.

use super::SearchStrategy;
use crate::LayerId;
use crate::search::{Change, Fit, Ground, Move, SearchError};

/// Every k-th layer reads the layer below, for as many layers as were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adjacent;

impl SearchStrategy for Adjacent {
    fn name(&self) -> String {
        "adjacent".into()
    }

    fn run(&self, ground: &mut dyn Ground) -> Result<(), SearchError> {
        let layers = ground.model().len();
        let options = *ground.options();
        let spread = |count: usize| {
            // The first layer has none below: where every other one is too few, they are spread over the rest.
            let even = 2 * count <= layers;
            let borrowers =
                (1..=count).map(move |k| if even { k * layers / count - 1 } else { k * (layers - 1) / count });
            borrowers.flat_map(move |borrower| {
                options.units.kinds().iter().map(move |&units| {
                    let donor = LayerId(borrower.saturating_sub(1));
                    let fitted = options.fit != Fit::None;
                    Change::Share(Move { borrower: LayerId(borrower), donor, units, fitted })
                })
            })
        };
        let count = (1..layers).find(|&count| {
            let changes: Vec<Change> = spread(count).collect();
            ground.would_be_done(&changes)
        });
        let Some(count) = count else { return Ok(()) };
        for change in spread(count) {
            if ground.is_done() {
                break;
            }
            ground.announce(1, 1);
            ground.judge(&[change], Default::default())?;
            ground.accept(&[change])?;
        }
        Ok(())
    }
}
