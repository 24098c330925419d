//! `kvsharer inspect`: what a strategy is and saves, and what differs between two.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::{Run, folder, run, strategy, tiny, write};

fn inspect(folder: &Path, args: &[&str]) -> Run {
    run(folder, &[&["inspect"], args].concat())
}

fn content(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

#[test]
fn the_savings_are_those_of_plan() {
    let work = folder();
    let path = strategy(work.path());
    for dtype in ["f32", "f16"] {
        let size = ["--batch", "3", "--tokens", "700", "--dtype", dtype, "--json"];
        let model = tiny();
        let plan = run(work.path(), &[&["plan", "-m", &model, "--strategy", &path][..], &size].concat()).json();
        for more in [&["-m", &model][..], &[]] {
            let told = inspect(work.path(), &[&[path.as_str()], more, &size].concat()).json();
            for field in ["plan_bytes", "full_bytes", "slots", "full_slots"] {
                assert_eq!(told["savings"][field], plan[field], "{field}");
            }
        }
    }
}

#[test]
fn it_tells_the_search_the_trials_and_the_map() {
    let work = folder();
    let path = strategy(work.path());
    let told = inspect(work.path(), &[&path, "--json"]).json();
    let file = content(&path);
    for field in ["model", "search", "calibration", "key_map", "value_map", "saved", "reached", "library"] {
        assert_eq!(told[field], file[field], "{field}");
    }
    assert_eq!(told["trials"], json!({ "tried": 1, "accepted": 1, "abandoned": 0 }));
    let text = inspect(work.path(), &[&path]).succeeds().stdout;
    for part in
        ["0 is read by 1", "saves             50.0 %", "1 tried, 1 accepted", "threshold -1", "batch 1, 2048 tokens"]
    {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

#[test]
fn fitted_maps_are_listed_with_their_residuals_and_size() {
    let work = folder();
    let search = ["search", "-m", &tiny(), "--strategy-search", "adjacent", "--fit", "heads", "--share", "1"];
    run(work.path(), &[&search[..], &["--held-back", "25%", "-o", "s.json"]].concat()).succeeds();
    let told = inspect(work.path(), &["s.json", "--json"]).json();
    let layer = &told["fitted"]["layers"][0];
    assert_eq!((&layer["layer"], &layer["maps"]), (&json!(1), &json!(["keys turned", "values mapped by head"])));
    assert_eq!(layer["residual"], content(work.path().join("s.json").to_str().expect("UTF-8"))["steps"][0]["residual"]);
    assert!(layer["residual"].is_number(), "{told}");
    let bytes = std::fs::metadata(work.path().join("s.safetensors")).expect("a file").len();
    assert_eq!(told["fitted"]["bytes"], bytes);
    // A strategy without its maps can still be looked at.
    std::fs::remove_file(work.path().join("s.safetensors")).expect("a file");
    let run = inspect(work.path(), &["s.json"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("CANNOT BE READ"), "{}", run.stdout);
}

#[test]
fn differences_are_settings_maps_and_the_first_trial_that_parts() {
    let work = folder();
    let path = strategy(work.path());
    let told = inspect(work.path(), &["--diff", &path, &path, "--json"]).json();
    assert_eq!((&told["same"], &told["differences"]), (&json!(true), &json!([])));
    assert_eq!(inspect(work.path(), &["--diff", &path, &path]).succeeds().stdout, "the strategies are the same\n");
    let mut other = content(&path);
    (other["search"]["seed"], other["value_map"], other["trials"][0]["accepted"]) = (json!(9), json!({}), json!(false));
    let other = write(work.path(), "other.json", other.to_string());
    let told = inspect(work.path(), &["--diff", &path, &other, "--json"]).json();
    let expected = json!([
        { "what": "search: seed", "a": 0, "b": 9 },
        { "what": "values of layer 1: read from", "a": 0, "b": null },
    ]);
    assert_eq!((&told["same"], &told["differences"]), (&json!(false), &expected));
    assert_eq!((&told["trials"]["same"], &told["trials"]["trial"]), (&json!(false), &json!(0)));
    let text = inspect(work.path(), &["--diff", &path, &other]).succeeds().stdout;
    assert!(text.contains("search: seed") && text.contains("parts at trial 0"), "{text}");
}

#[test]
fn wrong_usage_and_files_are_refused() {
    let work = folder();
    let path = strategy(work.path());
    inspect(work.path(), &[]).fails(2, "STRATEGY");
    inspect(work.path(), &["gone.json"]).fails(1, "gone.json");
    inspect(work.path(), &["--diff", &path]).fails(2, "--diff");
    inspect(work.path(), &[&path, "--at", "99%"]).fails(1, "saves at most");
    inspect(work.path(), &[&path, "-m", "random:tiny"]).fails(1, "number of layers is 2, the loaded model's is 4");
    let broken = write(work.path(), "broken.json", "{}");
    inspect(work.path(), &["--diff", &path, &broken]).fails(1, "broken.json");
    // Numbers that no machine has are told of, not multiplied.
    let mut vast = content(&path);
    vast["model"]["head_dim"] = json!(1u64 << 62);
    let vast = write(work.path(), "vast.json", vast.to_string());
    inspect(work.path(), &[&vast]).fails(2, "more than any memory holds");
    let mut long = content(&path);
    long["model"]["layers"] = json!(1u64 << 60);
    let long = write(work.path(), "long.json", long.to_string());
    inspect(work.path(), &[&long]).fails(1, "layers");
}
