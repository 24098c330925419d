//! Files of strangers: whatever a file holds, reading it gives a result or an error; nothing panics or hangs, and no
//! number in a file makes us take more memory than a small multiple of the file.
//!
//! An input is a folder: a seed (a fixture, or one made in `targets`) broken by up to three mutations. The short run is
//! part of `cargo test`; `KVSHARER_FUZZ=10000 cargo test --release --test fuzz -- --nocapture` gives every target that
//! many inputs and tells what was seen, KVSHARER_FUZZ_SEED draws others. What was found lies in `regressions`, and is
//! tried first.
#![allow(clippy::print_stdout, clippy::print_stderr)] // The long run is looked at.

mod driver;
#[path = "../../../kvsharer-models/tests/import_support/mod.rs"]
mod import_support;
mod json;
mod lies;
mod memory;
mod mutate;
mod targets;

macro_rules! fuzz {
    ($($name:ident: $target:expr,)*) => {
        $(#[test]
        fn $name() {
            let turn = driver::turn();
            $target.run(&turn);
        })*
    };
}

fuzz! {
    safetensors_folders: targets::weights::safetensors(),
    gguf_files: targets::weights::gguf(),
    whole_models: targets::models::weights(),
    model_configurations: targets::models::configurations(),
    tokenizers_of_folders: targets::tokenizers::folders(),
    tokenizers_of_gguf_files: targets::tokenizers::gguf(),
    chat_templates: targets::chat::templates(),
    strategy_files: targets::strategies::files(),
    sharing_maps: targets::strategies::maps(),
    policy_specs: targets::experiments::specs(),
    experiment_files: targets::experiments::files(),
    results_files: targets::experiments::results(),
    task_files: targets::tasks::files(),
}

#[test]
fn headers_that_promise_more_than_there_is() {
    let _turn = driver::turn();
    lies::are_refused();
}
