//! A method of one's own, beside a sharing map: keep the newest tokens and, of the older ones, every n-th.
//!
//! From the root of the workspace: `cargo run --release --example custom_policy`.
#![allow(clippy::print_stdout)]

use burn::tensor::{DType, Device, Tensor};
use kvsharer_compress::{Method, Options, Scored};
use kvsharer_core::{
    Attend, Cache, CacheOptions, EvidenceKind, Group, GroupState, KvShape, Lengths, ModelShape, Plan, Sharing, Stack,
};

/// Keeps `budget` tokens: half of them the newest, and of the older ones first those at multiples of `every`.
#[derive(Clone)]
struct Strided {
    budget: usize,
    every: usize,
}

impl Method for Strided {
    fn spec(&self) -> String {
        format!("strided:budget={},every={}", self.budget, self.every)
    }
    fn options(&self) -> Options {
        Options::default()
    }
    fn kept(&self, _layer: usize, _layers: usize, _prompt: usize) -> usize {
        self.budget
    }
    fn recent(&self, _layer: usize, _layers: usize, _prompt: usize) -> usize {
        self.budget / 2
    }
    // Positions tell enough: nobody looks at attention, so the fused path runs.
    fn evidence(&self) -> EvidenceKind {
        EvidenceKind::None
    }
    fn assign(&self, _group: &Group, state: &GroupState<'_>) -> Option<Tensor<3>> {
        Some(state.positions().remainder_scalar(self.every as i64).equal_elem(0).float())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROMPT: usize = 300;
    const TOKENS: usize = 400;
    let device = Device::flex();
    let model = ModelShape::uniform(4, KvShape::new(2, 8)); // 4 layers, 2 key-value heads of 8 channels
    let lengths = Lengths::new(PROMPT, TOKENS);
    let full = Plan::new(&model, &Stack::new())?.bytes(1, lengths, 4);

    let sharing = Sharing::both([(3, 1)])?; // layer 3 reads layer 1's keys and values
    let stack = Stack::new().with(sharing).with(Scored::new(Strided { budget: 64, every: 8 }));
    println!("{}", stack.names().join(" + "));
    let options = CacheOptions { batch: 1, tokens: TOKENS, prompt: Some(PROMPT), dtype: DType::F32, rope: None };
    let mut cache = Cache::new(&model, stack, options, &device)?;
    let planned = cache.plan().bytes(1, lengths, 4);
    println!("planned: {planned} bytes, the full cache has {full}");

    for pass in [PROMPT].into_iter().chain([1; TOKENS - PROMPT]) {
        cache.begin(pass)?;
        for layer in model.ids() {
            let query = Tensor::ones([1, 4, pass, 8], &device); // 4 query heads
            let projection = || Tensor::ones([1, 2, pass, 8], &device); // not called for layer 3
            cache.attend(layer, query, projection, projection)?;
        }
        assert_eq!(cache.bytes(), planned);
    }
    // 3 owners, keys and values, 64 tokens and the newest one, before it is decided who leaves.
    assert_eq!(planned, 3 * 2 * (2 * 65 * 8) * 4);
    println!(
        "held after {} tokens: {} bytes, {:.1} % of full",
        cache.seen(),
        cache.bytes(),
        100.0 * planned as f64 / full as f64
    );
    Ok(())
}
