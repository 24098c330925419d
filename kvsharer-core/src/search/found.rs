//! What a search leaves behind: trials, steps, and the draft.

use super::{Draft, Pair, Units};
use crate::{Adapter, LayerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One candidate and its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The layer that would lose its cache.
    pub borrower: LayerId,
    /// The owner whose cache it would read.
    pub donor: LayerId,
    /// What it would read there.
    #[serde(default)]
    pub units: Units,
    /// Whether maps were fitted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fitted: bool,
    /// Whether the layer's attention was dropped altogether; it is its own donor then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
    /// The layer that gets its own cache back in the same step, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned: Option<LayerId>,
    /// Distance of the pair that was ranked, by strategies that rank (its donor may itself borrow; `donor` is then its
    /// owner).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<f64>,
    /// Similarity of the outputs with all replacements so far and this one, for [`Objective::HiddenCosine`](super::Objective::HiddenCosine).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    /// The objective with all replacements so far and this one, for other objectives; that of the samples looked at if
    /// the trial was abandoned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<f64>,
    /// Whether part of the samples was enough to see that an earlier candidate is better.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abandoned: bool,
    /// Whether it was kept.
    pub accepted: bool,
}

/// One accepted step: a whole strategy at its share of bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Fraction of the KV bytes of a token that is saved.
    pub saved: f64,
    /// The objective on the samples searched with.
    pub objective: f64,
    /// The objective on those held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<f64>,
    /// Share of the variance of the fitted layer's outputs that its maps leave unexplained on the samples held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<f64>,
    /// Trials up to this step.
    pub trials: usize,
    /// Borrower -> owner whose keys it reads.
    pub key_map: BTreeMap<LayerId, LayerId>,
    /// Borrower -> owner whose values it reads.
    pub value_map: BTreeMap<LayerId, LayerId>,
    /// Layers without attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<LayerId>,
    /// Names of the fitted maps by layer, in [`Found::adapters`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub adapters: BTreeMap<LayerId, String>,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The sharing map with its fitted maps.
    pub draft: Draft,
    /// The pairs in the order of trial, of strategies that rank them.
    pub ranking: Vec<Pair>,
    /// All trials in order.
    pub trials: Vec<Trial>,
    /// All accepted steps in order; the last is the draft.
    pub steps: Vec<Step>,
    /// The fitted maps of all steps by name.
    pub adapters: BTreeMap<String, Adapter>,
    /// Replacements asked for.
    pub requested: usize,
    /// Replacements made: keys and values that are shared apart count apart.
    pub reached: usize,
    /// Fraction of the KV bytes of a token that is saved.
    pub saved: f64,
    /// Trials that the same strategy would have judged if it had judged every candidate at every step.
    pub exhaustive: usize,
    /// Layer forward passes computed, over all trials: what re-running only the layers a trial touches leaves.
    pub layers_run: usize,
}
