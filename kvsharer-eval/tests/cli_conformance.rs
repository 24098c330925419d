//! `conformance` and `devices`: what they print, and how they end.

mod support;

use support::{assert_has, folder, run, tiny, write};

#[test]
fn every_case_of_a_device_is_a_row_with_error_tolerance_and_verdict() {
    let work = folder();
    let report = run(work.path(), &["conformance", "--only", "store:", "--dtype", "bf16", "--json"]).json();
    assert_has(&report, &["conformance", "device", "dtype", "against", "library", "passed", "skipped", "failed"]);
    let rows = report["conformance"].as_array().expect("rows");
    assert!(rows.len() >= 3);
    for row in rows {
        assert_has(row, &["case", "device", "dtype", "worst_error", "tolerance", "verdict", "note", "seconds"]);
        assert_eq!((&row["verdict"], &row["worst_error"]), (&"passed".into(), &0.0.into()), "{row}");
    }
    assert_eq!((&report["device"], &report["dtype"], &report["failed"]), (&"cpu".into(), &"bf16".into(), &0.into()));
}

#[test]
fn a_model_equals_itself() {
    let (work, model) = (folder(), tiny());
    let report = run(work.path(), &["conformance", "--model", &model, "--only", "tiny.gguf", "--json"]).json();
    assert_eq!((&report["passed"], &report["failed"]), (&4.into(), &0.into()), "{report}");
    let rows = report["conformance"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["worst_error"] == 0.0), "{report}");
}

#[test]
fn half_precision_is_within_its_bounds() {
    let (work, model) = (folder(), tiny());
    let args = ["conformance", "--model", &model, "--only", "tiny.gguf", "--dtype", "bf16", "--json"];
    let report = run(work.path(), &args).json();
    assert_eq!((&report["passed"], &report["failed"]), (&4.into(), &0.into()), "{report}");
    let exact = report["conformance"].as_array().expect("rows").iter().all(|row| row["worst_error"] == 0.0);
    assert!(!exact, "{report}");
}

#[test]
fn a_failed_case_is_a_row_and_exit_code_1() {
    let work = folder();
    // Weights so large that no logit is a number.
    let mut broken = std::fs::read(tiny()).expect("a fixture");
    let data = broken.len() - 4096..;
    broken[data].fill(0x7e);
    write(work.path(), "broken.gguf", broken);
    let only = "broken.gguf: logits";
    let run = run(work.path(), &["conformance", "--model", "broken.gguf", "--only", only]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stdout.contains("FAILED") && run.stdout.contains("0 passed, 0 skipped, 1 failed"), "{}", run.stdout);
    assert!(run.stderr.ends_with("error: 1 of 1 cases failed on cpu\n"), "{}", run.stderr);
}

#[test]
fn a_table_says_what_passed_and_progress_goes_to_stderr() {
    let work = folder();
    let run = run(work.path(), &["conformance", "--only", "search: distances", "--dtype", "f16"]).succeeds();
    assert!(run.stdout.contains("skipped") && run.stdout.contains("0 passed, 1 skipped, 0 failed"), "{}", run.stdout);
    assert!(run.stderr.contains("[1/1] search: distances"), "{}", run.stderr);
}

#[test]
fn wrong_cases_models_and_devices_are_refused() {
    let work = folder();
    run(work.path(), &["conformance", "--only", "nothing like it"]).fails(2, "no case has that in its name");
    run(work.path(), &["conformance", "--model", "no-such-model"]).fails(2, "no-such-model");
    run(work.path(), &["conformance", "--devices", "cpu,cpu"]).fails(2, "runs on one device");
    if cfg!(not(feature = "wgpu")) {
        let refused = "no wgpu backend: build it with `cargo build --release --features wgpu`";
        run(work.path(), &["conformance", "--device", "wgpu"]).fails(2, refused);
    }
}

#[test]
fn devices_lists_the_cpu_and_what_others_need() {
    let work = folder();
    let report = run(work.path(), &["devices", "--threads", "2", "--json"]).json();
    let rows = report["devices"].as_array().expect("rows");
    assert_eq!(
        (&rows[0]["device"], &rows[0]["threads"], &rows[0]["available"]),
        (&"cpu".into(), &2.into(), &true.into())
    );
    assert_eq!(rows[0]["dtypes"], serde_json::json!(["f32", "f16", "bf16"]));
    let text = run(work.path(), &["devices"]).succeeds().stdout;
    if cfg!(not(feature = "cuda")) {
        assert!(text.contains("cargo build --release --features cuda"), "{text}");
    }
}
