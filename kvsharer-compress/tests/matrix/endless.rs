//! However long the text gets, the cache holds the bytes that the plan said and no more tokens than its budget.

use crate::support::kept;
use burn::tensor::{DType, Device, Tensor, TensorData};
use kvsharer_compress::parse_policy;
use kvsharer_compress::testing::{QUANTISED, ROWS};
use kvsharer_core::{Attend, Cache, CacheOptions, Kv, KvShape, LayerMap, Lengths, ModelShape, Rope, Sharing, Stack};

const PROMPT: usize = 30;
const STEPS: usize = 2000;
const DIM: usize = 8;

/// SPECs with the tokens that may stand above the budget after a pass; `None` if all tokens after the prompt stay.
const SPECS: [(&str, Option<usize>); 13] = [
    ("full", None),
    ("streaming-llm:sinks=2,window=20", Some(0)),
    ("window:budget=22,protect=2", Some(0)),
    ("h2o:heavy=11,recent=11", Some(0)),
    ("h2o:variant=streaming,heavy=11,recent=11", Some(0)),
    ("h2o:variant=observed,budget=50%", None),
    ("snapkv:budget=20,window=7,decode=evict", Some(6)),
    ("snapkv:budget=20,window=7", None),
    ("pyramidkv:budget=20,window=7,decode=evict", Some(6)),
    ("pyramidinfer-cache:final=20%,min=2,decode=evict", Some(15)),
    ("tova:budget=22", Some(0)),
    ("knorm:budget=22", Some(0)),
    ("random:budget=22", Some(0)),
];

/// Runs a prompt and single tokens after it through two layers that share values.
fn run(spec: &str, above: Option<usize>, storage: Option<&str>) {
    let device = Device::flex();
    let what = format!("{spec}, storage: {storage:?}");
    let model = ModelShape::uniform(2, KvShape::new(1, DIM));
    let values = LayerMap::resolve(Kv::Value, [(1, 0)]).unwrap();
    let stack = Stack::new().with(Sharing::new(LayerMap::default(), values)).with(parse_policy(spec).unwrap());
    let stack = match storage {
        Some(storage) => stack.with(parse_policy(storage).unwrap()),
        None => stack,
    };
    let options = CacheOptions {
        batch: 1,
        tokens: PROMPT + STEPS,
        prompt: Some(PROMPT),
        dtype: DType::F32,
        rope: Some(Rope::new(DIM, 100.0)),
    };
    let lengths = Lengths::new(PROMPT, PROMPT + STEPS);
    let mut cache = Cache::new(&model, stack, options, &device).unwrap();
    let planned = cache.plan().bytes(1, lengths, 4);
    let budget = cache.plan().groups()[0].budgets.first().map_or(PROMPT, |budget| budget.kept(PROMPT));
    // Any numbers will do, with a period that no budget divides.
    let numbers: Vec<f32> = (0..(101 + 3 * PROMPT) * DIM).map(|i| ((i * 7919) % 2003) as f32 / 500.0 - 2.0).collect();
    let numbers = Tensor::<1>::from_data(TensorData::from(&numbers[..]), &device);
    for step in 0..=STEPS {
        let pass = if step == 0 { PROMPT } else { 1 };
        cache.begin(pass).unwrap();
        for layer in model.ids() {
            let start = (step * 2 + layer.0) % 101;
            let part = |from: usize, heads: usize| {
                let part = numbers.clone().slice_dim(0, (start + from) * DIM..(start + from + heads * pass) * DIM);
                part.reshape([1, heads, pass, DIM])
            };
            let mixed = cache.attend(layer, part(0, 2), || part(pass, 1), || part(2 * pass, 1)).unwrap();
            assert!(step == 0 || cache.bytes() == planned, "{what}: {} bytes within step {step}", cache.bytes());
            if step % 100 == 0 {
                assert!(mixed.is_finite().all().into_scalar::<bool>(), "{what}, step {step}");
            }
        }
        assert_eq!(cache.bytes(), planned, "{what}, step {step}");
        // Some periods of any rhythm of evictions.
        if step % 100 < 20 {
            let longest = kept(&cache, 0)[0].len();
            assert!(longest <= budget + above.unwrap_or(step), "{what}: {longest} tokens after step {step}");
        }
    }
}

#[test]
fn two_thousand_tokens_take_what_the_plan_says() {
    SPECS.iter().for_each(|&(spec, above)| run(spec, above, None));
}

#[test]
fn two_thousand_tokens_in_few_bits_take_what_the_plan_says() {
    for (index, &(spec, above)) in SPECS.iter().enumerate() {
        run(spec, above, Some(QUANTISED[index % 2]));
    }
}

#[test]
fn every_policy_runs_for_two_thousand_tokens() {
    let covered =
        |policy: &str| policy == "quant" || SPECS.iter().any(|(spec, _)| spec.split(':').next() == Some(policy));
    assert!(ROWS.iter().all(|row| covered(row.policy)));
}
