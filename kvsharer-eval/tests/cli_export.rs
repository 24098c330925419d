//! `kvsharer export`: what is written, what is refused and why, and that a folder appears complete or not at all.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::{Run, files, folder, run, strategy, tiny, write};

fn export(folder: &Path, args: &[&str]) -> Run {
    run(folder, &[&["export"], args].concat())
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

/// A strategy of the tiny model, changed.
fn changed(folder: &Path, change: impl FnOnce(&mut Value)) -> String {
    let mut content = json_file(Path::new(&strategy(folder)));
    change(&mut content);
    write(folder, "changed.json", content.to_string())
}

#[test]
fn transformers_gets_a_module_and_the_strategy() {
    let work = folder();
    let strategy = strategy(work.path());
    let told = export(work.path(), &[&strategy, "--to", "transformers", "-o", "out", "--json"]).json();
    assert_eq!(told["files"], json!(["kvsharer_sharing.py", "strategy.json"]));
    assert_eq!(told["folded"], false);
    assert_eq!(json_file(&work.path().join("out/strategy.json")), json_file(Path::new(&strategy)));
    // Nothing temporary is left.
    assert!(files(work.path()).keys().all(|path| !path.to_string_lossy().contains(".part")));
}

#[test]
fn vllm_gets_a_package_with_an_entry_point() {
    let work = folder();
    let strategy = strategy(work.path());
    export(work.path(), &[&strategy, "--to", "vllm", "-m", &tiny(), "-o", "out"]).succeeds();
    let written = files(&work.path().join("out"));
    let project: toml::Value =
        toml::from_str(std::str::from_utf8(&written[Path::new("pyproject.toml")]).expect("UTF-8")).expect("TOML");
    let entry = project["project"]["entry-points"]["vllm.general_plugins"]["kvsharer"].as_str().expect("a text");
    let (module, function) = entry.split_once(':').expect("module:function");
    let module = &written[&Path::new(module).join("__init__.py")];
    assert!(std::str::from_utf8(module).expect("UTF-8").contains(&format!("def {function}()")));
    assert!(written.contains_key(Path::new("kvsharer_vllm/strategy.json")));
    assert!(written.contains_key(Path::new("kvsharer_vllm/models.py")));
}

#[test]
fn a_gguf_file_becomes_a_folder_that_gives_the_same_perplexity() {
    let work = folder();
    let strategy = strategy(work.path());
    let text = format!("perplexity={}", write(work.path(), "text.txt", support::TEXT));
    export(work.path(), &[&strategy, "--to", "hf", "-m", &tiny(), "-o", "out"]).succeeds();
    let value = |model: &str, strategy: &str| {
        let args = ["eval", "-m", model, "--strategy", strategy, "--task", &text, "--json"];
        run(work.path(), &args).json()["results"][0]["metrics"]["perplexity"]["value"].as_f64().expect("a number")
    };
    let (ours, theirs) = (value(&tiny(), &strategy), value("out", "out/strategy.json"));
    assert!((ours - theirs).abs() < 1e-6 * ours, "{ours} and {theirs}");
    // The strategy of the file is for the file: the folder has its own.
    run(work.path(), &["plan", "-m", "out", "--strategy", &strategy]).fails(1, "weight hash");
}

#[test]
fn a_model_without_a_strategy_is_copied_in_any_dtype() {
    let work = folder();
    for (dtype, name) in [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16")] {
        export(work.path(), &["--to", "hf", "-m", "random:tiny", "-o", dtype, "--dtype", dtype]).succeeds();
        assert_eq!(json_file(&work.path().join(dtype).join("config.json"))["torch_dtype"], name);
        run(work.path(), &["plan", "-m", dtype]).succeeds();
    }
    let size =
        |dtype: &str| std::fs::metadata(work.path().join(dtype).join("model.safetensors")).expect("a file").len();
    assert!(2 * size("f32") > 3 * size("f16") && 2 * size("f32") > 3 * size("bf16"));
}

#[test]
fn fitted_maps_go_into_the_weights() {
    let work = folder();
    let found =
        ["search", "-m", &tiny(), "--strategy-search", "adjacent", "--fit", "heads", "--share", "1", "-o", "s.json"];
    run(work.path(), &found).succeeds();
    assert!(work.path().join("s.safetensors").is_file(), "the search fitted maps");
    export(work.path(), &["s.json", "--to", "transformers", "-o", "out"]).fails(2, "--model");
    let args = ["s.json", "--to", "transformers", "-m", &tiny(), "-o", "out", "--json"];
    assert_eq!(export(work.path(), &args).json()["folded"], true);
    let strategy = json_file(&work.path().join("out/strategy.json"));
    assert_eq!((&strategy["adapters"], &strategy["adapter_file"]), (&Value::Null, &Value::Null));
    let text = format!("perplexity={}", write(work.path(), "text.txt", support::TEXT));
    let value = |model: &str, strategy: &str| {
        let args = ["eval", "-m", model, "--strategy", strategy, "--task", &text, "--json"];
        run(work.path(), &args).json()["results"][0]["metrics"]["perplexity"]["value"].as_f64().expect("a number")
    };
    let (ours, theirs) = (value(&tiny(), "s.json"), value("out/model", "out/strategy.json"));
    assert!((ours - theirs).abs() < 1e-4 * ours, "{ours} and {theirs}");
    std::fs::remove_file(work.path().join("s.safetensors")).expect("a file");
    export(work.path(), &["s.json", "--to", "hf", "-m", &tiny(), "-o", "gone"]).fails(1, "s.safetensors");
    assert!(!work.path().join("gone").exists());
}

#[test]
fn what_a_target_cannot_express_is_refused_with_the_reason() {
    let work = folder();
    let apart = changed(work.path(), |strategy| strategy["value_map"] = json!({}));
    export(work.path(), &[&apart, "--to", "vllm", "-o", "out"]).fails(1, "keys and values apart (layers 1)");
    export(work.path(), &[&apart, "--to", "transformers", "-o", "apart"]).succeeds();
    let good = strategy(work.path());
    export(work.path(), &[&good, "--to", "llama.cpp", "-o", "out"]).fails(1, "which layer reads which layer's cache");
    let dropped = changed(work.path(), |strategy| strategy["dropped"] = json!([1]));
    for target in ["hf", "transformers", "vllm"] {
        export(work.path(), &[&dropped, "--to", target, "-m", &tiny(), "-o", "out"]).fails(1, "drops the attention");
    }
    export(work.path(), &[&good, "--to", "vllm", "-m", "random:tiny", "-o", "out"]).fails(1, "number of layers is 2");
    assert!(!work.path().join("out").exists());
}

#[test]
fn wrong_usage_says_what_to_do() {
    let work = folder();
    let good = strategy(work.path());
    export(work.path(), &["--to", "vllm", "-o", "out"]).fails(2, "give a strategy");
    export(work.path(), &["--to", "hf", "-o", "out"]).fails(2, "--model");
    export(work.path(), &[&good, "-o", "out"]).fails(2, "--to");
    export(work.path(), &[&good, "--to", "onnx", "-o", "out"]).fails(2, "onnx");
    export(work.path(), &["gone.json", "--to", "vllm", "-o", "out"]).fails(1, "gone.json");
    export(work.path(), &[&good, "--to", "vllm", "--at", "90%", "-o", "out"]).fails(1, "saves at most");
    export(work.path(), &[&good, "--to", "vllm", "-o", "no/such/folder"]).fails(1, "no/such/folder");
    assert!(!work.path().join("out").exists());
}

#[test]
fn folders_with_files_are_left_alone_unless_forced() {
    let work = folder();
    let good = strategy(work.path());
    let out = work.path().join("out");
    std::fs::create_dir(&out).expect("a folder");
    // An empty folder is as good as none.
    export(work.path(), &[&good, "--to", "transformers", "-o", "out"]).succeeds();
    write(&out, "mine.txt", "mine");
    write(&out, "strategy.json", "old");
    let before = files(&out);
    export(work.path(), &[&good, "--to", "transformers", "-o", "out"]).fails(1, "not empty");
    assert_eq!(files(&out), before);
    export(work.path(), &[&good, "--to", "transformers", "-o", "out", "--force"]).succeeds();
    let after = files(&out);
    assert_eq!(after[Path::new("mine.txt")], b"mine");
    assert_ne!(after[Path::new("strategy.json")], b"old");
    export(work.path(), &[&good, "--to", "transformers", "-o", &good, "--force"]).fails(1, "shared.json");
    assert_eq!(json_file(Path::new(&good))["version"], 1);
}
