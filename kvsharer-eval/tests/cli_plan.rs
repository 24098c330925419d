//! `kvsharer plan` with prompts, quantised storage and memory budgets.

mod support;

use serde_json::Value;
use support::{folder, run, tiny};

/// Bytes of a token: keys and values of 2 layers with 2 heads of 8 channels.
const TOKEN: u64 = 2 * 2 * 2 * 8 * 4;

fn plan(options: &[&str]) -> Value {
    let work = folder();
    run(work.path(), &[&["plan", "-m", &tiny(), "--json", "--tokens", "1000"], options].concat()).json()
}

fn bytes(options: &[&str]) -> u64 {
    plan(options)["plan_bytes"].as_u64().expect("bytes")
}

#[test]
fn a_known_prompt_makes_the_bytes_of_prompt_reducing_policies_exact() {
    let half = "h2o:variant=observed,budget=50%";
    // 400 of 800 tokens stay, and the 200 after them.
    assert_eq!(bytes(&["--policy", half, "--prompt", "800"]), 600 * TOKEN);
    // Without it the worst case: hardly any prompt at all.
    assert_eq!(bytes(&["--policy", half]), 1000 * TOKEN);
    assert_eq!(bytes(&["--policy", "h2o:heavy=10%,recent=10%", "--prompt", "800"]), 161 * TOKEN);
    assert_eq!(bytes(&["--policy", "tova:budget=60..20", "--prompt", "800"]), (61 + 21) * TOKEN / 2);
    let plan = plan(&["--policy", "tova:budget=60", "--prompt", "800"]);
    // A score in f32 and a position in 64 bits for each head and cell.
    assert_eq!(plan["bookkeeping_bytes"], 2 * 2 * 61 * (4 + 8));
    // The prompt stands in full beside the buffers while its layer runs.
    assert_eq!(plan["prefill_peak_bytes"], 61 * TOKEN + 800 * TOKEN / 2);
}

#[test]
fn quantised_bytes_are_codes_ranges_and_the_residual() {
    // 968 cells in 8-bit codes, buffers for 40 in full; a range for 8 tokens of each channel, and for each token and 8 channels.
    let codes = 2 * 2 * 2 * 968 * 8;
    let ranges = 2 * 2 * (968 / 8 * 8 + 968) * 2 * 4;
    let residual = (32 + 8) * TOKEN;
    assert_eq!(bytes(&["--policy", "quant:bits=8,group=8,residual=32"]), codes + ranges + residual);
    assert_eq!(bytes(&["--policy", "quant:bits=4,group=8,residual=32"]), codes / 2 + ranges + residual);
}

#[test]
fn a_memory_budget_sets_the_budget_of_the_policy() {
    let solved = plan(&["--policy", "h2o:group=max", "--kv-budget", "64KiB", "--prompt", "500"]);
    // 65,536 bytes hold 256 tokens, one of them on top of the budget.
    assert_eq!(solved["policies"][0], "h2o:heavy=127,recent=128,group=max");
    assert_eq!(solved["plan_bytes"], 256 * TOKEN);
    let both =
        plan(&["--policy", "streaming-llm", "--policy", "quant:bits=4,group=8,residual=16", "--kv-budget", "64KiB"]);
    assert!(both["plan_bytes"].as_u64().is_some_and(|bytes| (60 << 10..=64 << 10).contains(&bytes)), "{both}");
    assert_eq!(both["kv_budget"], 64 << 10);
}

#[test]
fn impossible_budgets_are_refused_with_the_policy_and_the_value() {
    let work = folder();
    for (options, expected) in [
        (&["--policy", "quant", "--kv-budget", "1MiB"][..], "0 policies with a budget to solve for"),
        (
            &["--policy", "h2o", "--policy", "tova", "--kv-budget", "1MiB"],
            "both `h2o:heavy=256,recent=256` and `tova:budget=512` evict",
        ),
        (&["--policy", "snapkv", "--kv-budget", "1KiB"], "`snapkv` does not fit 1024 bytes: the smallest budget takes"),
        (&["--policy", "tova", "--kv-budget", "much"], "--kv-budget"),
        (&["--policy", "tova:budget=4,protect=4"], "`tova:budget=4,protect=4`: a budget of 4 tokens has no room"),
        (&["--policy", "snapkv:budget=32"], "a budget of 32 tokens has no room beside 0 protected and 32 recent"),
        (&["--policy", "h2o:heavy=1/2/3,recent=4"], "heavy lists 3 amounts, the model has 2 layers"),
        (&["--policy", "quant:group=3"], "cannot store heads of 8 channels"),
        (&["--prompt", "4096"], "--prompt 4096 is longer than the sequence, --tokens 2048"),
    ] {
        run(work.path(), &[&["plan", "-m", &tiny()], options].concat()).fails(2, expected);
    }
}
