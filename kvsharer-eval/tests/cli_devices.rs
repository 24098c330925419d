//! `--devices`: one model on several devices. The same device twice stands for two: layers are placed and refused by
//! their place in the list, so that all but the copies between memories is tested without a second device.

mod support;

use serde_json::Value;
use support::{assert_has, folder, run, strategy, tiny};

const PROMPT: &str = "hello world of the others";

fn generate(more: &[&str]) -> support::Run {
    run(folder().path(), &[&["generate", "-m", &tiny(), "-p", PROMPT, "-n", "12", "--json"], more].concat())
}

/// On two GPUs run `KVSHARER_DEVICES=cuda:0,cuda:1` of a build with the feature `cuda`.
fn devices() -> String {
    std::env::var("KVSHARER_DEVICES").unwrap_or_else(|_| "cpu,cpu".into())
}

fn one() -> String {
    devices().split(',').next().expect("a device").to_owned()
}

#[test]
fn a_spread_model_says_the_same() {
    let (devices, one) = (devices(), one());
    let whole = generate(&["--device", &one]).json();
    let spread = generate(&["--devices", &devices]).json();
    assert_has(&spread, &["device", "ids"]);
    assert_eq!((&spread["ids"], &spread["kv_bytes"]), (&whole["ids"], &whole["kv_bytes"]));
    assert_eq!(spread["device"], Value::from(devices.as_str()));
    for policy in ["streaming-llm:sinks=2,window=6", "h2o:heavy=4,recent=4", "quant:bits=4,group=8"] {
        let whole = generate(&["--device", &one, "--policy", policy, "--chunk", "4"]).json();
        let spread = generate(&["--devices", &devices, "--policy", policy, "--chunk", "4"]).json();
        assert_eq!(spread["ids"], whole["ids"], "{policy}");
    }
}

#[test]
fn borrowing_across_devices_has_to_be_allowed() {
    let work = folder();
    let (shared, devices, one) = (strategy(work.path()), devices(), one());
    let refused = "layer 1 on device 1 borrows the keys of layer 0 on device 0";
    generate(&["--devices", &devices, "--strategy", &shared]).fails(2, refused);
    let text = support::write(work.path(), "text.txt", support::TEXT.repeat(3));
    let task = format!("perplexity={text}");
    let eval = ["eval", "-m", &tiny(), "--task", &task, "--window", "32", "--json", "--strategy", &shared];
    run(work.path(), &[&eval[..], &["--devices", &devices]].concat()).fails(2, refused);
    let allowed = ["--devices", &devices, "--allow-cross-device"];
    let whole = generate(&["--device", &one, "--strategy", &shared]).json();
    assert_eq!(generate(&[&allowed[..], &["--strategy", &shared]].concat()).json()["ids"], whole["ids"]);
    let value = |more: &[&str]| {
        let result = run(work.path(), &[&eval[..], more].concat()).json();
        result["results"][0]["metrics"]["perplexity"]["value"].as_f64().expect("a number")
    };
    let (spread, whole) = (value(&allowed), value(&["--device", &one]));
    assert!((spread / whole - 1.0).abs() < 1e-4, "{spread}, {whole}");
}

#[test]
fn wrong_devices_are_refused() {
    generate(&["--devices", "cpu,cpu,cpu"]).fails(2, "3 devices for 2 layers");
    generate(&["--devices", "cpu,tpu"]).fails(2, "expected cpu, cuda");
    generate(&["--devices", "cpu,cpu", "--device", "cpu"]).fails(2, "cannot be used with");
    run(folder().path(), &["demo", "--devices", "cpu,cpu"]).fails(2, "runs on one device");
}
