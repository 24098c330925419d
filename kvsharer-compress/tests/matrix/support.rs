//! What a combination is, and how it is run.

use burn::tensor::{DType, Device, Tensor};
use kvsharer_compress::parse_policy;
use kvsharer_compress::testing::{QUANTISED, ROWS, Row};
use kvsharer_core::testing::{ToyModel, kept_tokens, toy_tokens};
use kvsharer_core::{Cache, CacheOptions, EvidenceKind, Kv, LayerId, LayerMap, Plan, SearchModel, Sharing, Stack};
use std::collections::HashSet;
use std::fmt;

/// Tokens of a prompt.
pub(crate) const PROMPT: usize = 40;
/// Tokens generated after it, so many that a quantised block of evicted cells is filled again.
pub(crate) const STEPS: usize = 12;
pub(crate) const TOKENS: usize = PROMPT + STEPS;
pub(crate) const BATCH: usize = 2;
pub(crate) const LAYERS: usize = 5;

pub(crate) fn model() -> ToyModel {
    ToyModel::new(LAYERS, 4, 2, 8, 3, &Device::flex())
}

pub(crate) fn tokens() -> Vec<Vec<u32>> {
    toy_tokens(BATCH, TOKENS, 11)
}

/// Which layers read another layer's keys or values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shared {
    Nothing,
    Both,
    Values,
    Keys,
}

impl Shared {
    pub(crate) const ALL: [Self; 4] = [Self::Nothing, Self::Both, Self::Values, Self::Keys];

    pub(crate) fn sharing(self) -> Sharing {
        let map = |kind| LayerMap::resolve(kind, [(3, 1), (4, 0)]).unwrap();
        match self {
            Self::Nothing => Sharing::default(),
            Self::Both => Sharing::both([(2, 0), (3, 1), (4, 0)]).unwrap(),
            Self::Values => Sharing::new(LayerMap::default(), map(Kv::Value)),
            Self::Keys => Sharing::new(map(Kv::Key), LayerMap::default()),
        }
    }
}

/// One combination.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) spec: &'static str,
    pub(crate) shared: Shared,
    /// In full if `None`.
    pub(crate) storage: Option<&'static str>,
    pub(crate) dtype: DType,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spec, shared, storage, dtype } = self;
        write!(f, "{spec}, shared: {shared:?}, storage: {}, {dtype:?}", storage.unwrap_or("full"))
    }
}

impl Case {
    /// The members that say where and how, without the policy.
    pub(crate) fn base<'p>(&self) -> Stack<'p> {
        let stack = Stack::new().with(self.shared.sharing());
        match self.storage {
            Some(storage) => stack.with(parse_policy(storage).unwrap()),
            None => stack,
        }
    }

    pub(crate) fn stack<'p>(&self) -> Stack<'p> {
        self.base().with(parse_policy(self.spec).unwrap())
    }

    pub(crate) fn plan(&self, model: &ToyModel) -> Plan {
        Plan::new(model.shape(), &self.stack()).unwrap()
    }

    /// A cache for [`BATCH`] rows of [`TOKENS`] tokens under a stack of this case.
    pub(crate) fn cache<'p>(&self, model: &ToyModel, stack: Stack<'p>, prompt: Option<usize>) -> Cache<'p> {
        let options = CacheOptions { prompt, dtype: self.dtype, ..model.cache_options(BATCH, TOKENS) };
        let cache = Cache::new(model.shape(), stack, options, &Device::flex());
        cache.unwrap_or_else(|error| panic!("{self}: {error}"))
    }

    /// Whether the policy goes by what queries attend to.
    pub(crate) fn looks(&self, model: &ToyModel) -> bool {
        self.plan(model).groups()[0].evidence == EvidenceKind::KeyMass
    }

    /// Whether tokens are held in full precision.
    pub(crate) fn in_full(&self) -> bool {
        self.storage.is_none() && !self.spec.starts_with("quant")
    }

    /// Whether room is made before each chunk of a prompt, instead of after all of it.
    pub(crate) fn evicts_before(&self) -> bool {
        ["streaming-llm", "window"].iter().any(|name| self.spec.starts_with(name))
    }
}

/// The first SPEC of every row in every combination of sharing, storage and dtype; its other SPECs as in [`pairs`].
pub(crate) fn cases(specs: impl Fn(&Row) -> &'static [&'static str]) -> Vec<Case> {
    combine(specs, |index| index == 0)
}

/// Every SPEC with every sharing, every storage and every dtype, but not with all triples of them, to save time.
pub(crate) fn pairs(specs: impl Fn(&Row) -> &'static [&'static str]) -> Vec<Case> {
    combine(specs, |_| false)
}

fn combine(specs: impl Fn(&Row) -> &'static [&'static str], full: impl Fn(usize) -> bool) -> Vec<Case> {
    let storages = [None, Some(QUANTISED[0]), Some(QUANTISED[1])];
    let dtypes = [DType::F32, DType::F16];
    let mut cases = Vec::new();
    for row in ROWS {
        for (index, spec) in specs(row).iter().copied().enumerate() {
            for (turn, shared) in Shared::ALL.into_iter().enumerate() {
                let all = storages.into_iter().flat_map(|storage| dtypes.map(|dtype| (storage, dtype)));
                let wanted = match full(index) {
                    true => all.collect(),
                    false => vec![(storages[(index + turn) % 3], dtypes[(index + turn) % 2])],
                };
                // A stack has one storage.
                let wanted = wanted.into_iter().filter(|(storage, _)| storage.is_none() || row.policy != "quant");
                cases.extend(wanted.map(|(storage, dtype)| Case { spec, shared, storage, dtype }));
            }
        }
    }
    cases
}

/// The same with a cache in the dtype of the model.
pub(crate) fn in_f32(mut cases: Vec<Case>) -> Vec<Case> {
    cases.iter_mut().for_each(|case| case.dtype = DType::F32);
    let mut met = HashSet::new();
    cases.retain(|case| met.insert(case.to_string()));
    cases
}

/// Runs the next tokens in passes of these lengths; final states `[batch, token, hidden]`.
pub(crate) fn go_on(case: &Case, model: &ToyModel, passes: &[usize], cache: &mut Cache<'_>) -> Tensor<3> {
    let tokens = tokens();
    let pass = |&pass: &usize| {
        let start = cache.seen();
        cache.begin(pass)?;
        model.forward(&tokens, start..start + pass, cache)
    };
    let outputs: Result<Vec<_>, _> = passes.iter().map(pass).collect();
    Tensor::cat(outputs.unwrap_or_else(|error| panic!("{case}: {error}")), 1)
}

/// Runs a prompt in chunks, then single tokens.
pub(crate) fn run(case: &Case, model: &ToyModel, prompt: &[usize], cache: &mut Cache<'_>) -> Tensor<3> {
    assert_eq!(prompt.iter().sum::<usize>(), PROMPT);
    go_on(case, model, &[prompt, &[1; STEPS]].concat(), cache)
}

/// Positions of the tokens a layer can read, oldest first, for each row and head.
pub(crate) fn kept(cache: &Cache<'_>, layer: usize) -> Vec<Vec<i64>> {
    kept_tokens(cache, LayerId(layer)).unwrap()
}
