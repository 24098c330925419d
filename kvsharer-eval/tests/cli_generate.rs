//! `generate`: the same options give the same text, however the prompt is run; stop strings cut; bad prompts fail.
#![allow(clippy::print_stdout)] // skipped checks say why

mod support;

use serde_json::Value;
use support::{Run, assert_has, folder, run, strategy, tiny};

fn generate(prompt: &str, more: &[&str]) -> Run {
    let folder = folder();
    run(folder.path(), &[&["generate", "-m", &tiny(), "-p", prompt], more].concat())
}

/// The continuation's text and ids.
fn continuation(prompt: &str, more: &[&str]) -> (String, Vec<u64>) {
    let result = generate(prompt, &[&["--json", "--ignore-eos"], more].concat()).json();
    let ids = result["ids"].as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id")).collect();
    (result["text"].as_str().expect("a text").into(), ids)
}

#[test]
fn json_has_the_continuation_and_what_it_cost() {
    let result = generate("hello world", &["--json", "-n", "5"]).json();
    assert_has(
        &result,
        &[
            "model",
            "strategy",
            "policies",
            "prompt",
            "text",
            "ids",
            "prompt_tokens",
            "stopped",
            "prefill_tokens_per_second",
            "decode_tokens_per_second",
            "plan_bytes",
            "kv_bytes",
            "device",
            "dtype",
        ],
    );
    assert_eq!(
        (&result["prompt"], &result["model"], &result["stopped"]),
        (&"hello world".into(), &"tiny.gguf".into(), &"length".into())
    );
    assert_eq!(result["ids"].as_array().map(Vec::len), Some(5));
    assert_eq!((&result["policies"], &result["strategy"]), (&serde_json::json!(["full"]), &Value::Null));
    // K and V of 2 layers, 2 heads of 8 channels, 4 bytes each.
    let tokens = result["prompt_tokens"].as_u64().expect("a number") + 5;
    assert_eq!(result["plan_bytes"].as_u64(), Some(tokens * 2 * 2 * 2 * 8 * 4));
}

#[test]
fn text_on_stdout_is_the_prompt_and_what_json_says() {
    let (text, _) = continuation("hello", &["-n", "8"]);
    let run = generate("hello", &["-n", "8", "--ignore-eos"]).succeeds();
    assert_eq!(run.stdout, format!("hello{text}\n"));
    assert!(run.stderr.contains("1 prompt tokens") && run.stderr.contains("8 new tokens"), "{}", run.stderr);
}

#[test]
fn greedy_text_is_the_same_whatever_the_seed_and_the_threads() {
    let first = continuation("hello world", &["-n", "12"]);
    for more in [&[][..], &["--seed", "9"], &["--threads", "1"]] {
        assert_eq!(continuation("hello world", &[&["-n", "12"], more].concat()), first);
    }
}

#[test]
fn the_seed_decides_what_is_sampled() {
    let sample = |seed| continuation("hello", &["-n", "24", "--temperature", "2", "--seed", seed]);
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
    // The best token alone is left: greedy, whatever the temperature.
    let greedy = continuation("hello", &["-n", "12"]);
    assert_eq!(continuation("hello", &["-n", "12", "--temperature", "2", "--top-k", "1"]), greedy);
    assert_eq!(continuation("hello", &["-n", "12", "--temperature", "2", "--top-p", "1e-9"]), greedy);
}

#[test]
fn prompts_run_in_passes_of_any_length_give_the_same_text() {
    let (work, prompt) = (folder(), "hello the world of the others and 2024 numbers");
    let path = strategy(work.path());
    for stack in [&[][..], &["--strategy", &path]] {
        let whole = continuation(prompt, &[&["-n", "16"], stack].concat());
        for chunk in ["1", "3", "8", "1000"] {
            assert_eq!(
                continuation(prompt, &[&["-n", "16", "--chunk", chunk], stack].concat()),
                whole,
                "passes of {chunk}"
            );
        }
    }
}

#[test]
fn an_evicting_policy_bounds_the_cache_and_a_wide_one_changes_nothing() {
    let prompt = "hello the world of the others and 2024 numbers";
    let full = continuation(prompt, &["-n", "16"]);
    assert_eq!(continuation(prompt, &["-n", "16", "--policy", "streaming-llm:sinks=4,window=508"]), full);
    let options = ["--json", "--ignore-eos", "-n", "64", "--chunk", "4", "--policy", "streaming-llm:sinks=2,window=6"];
    let result = generate(prompt, &options).json();
    assert_eq!(result["ids"].as_array().map(Vec::len), Some(64));
    let bytes = |tokens: u64| tokens * 2 * 2 * 2 * 8 * 4;
    assert!(result["kv_bytes"].as_u64().is_some_and(|held| held <= bytes(8 + 4)), "{}", result["kv_bytes"]);
}

#[test]
fn a_stop_string_is_cut_off_with_all_behind_it() {
    let (text, _) = continuation("hello", &["-n", "24"]);
    let printable: Vec<char> = text.chars().filter(|c| c.is_ascii_graphic()).collect();
    let stop = printable[printable.len() / 2].to_string();
    let expected = &text[..text.find(&stop).expect("it is there")];
    let result =
        generate("hello", &["-n", "24", "--json", "--ignore-eos", "--stop", "never said", "--stop", &stop]).json();
    assert_eq!((&result["text"], &result["stopped"]), (&expected.into(), &"stop-string".into()));
    // On stdout too, where it comes piece by piece.
    let run = generate("hello", &["-n", "24", "--ignore-eos", "--stop", &stop]).succeeds();
    assert_eq!(run.stdout, format!("hello{expected}\n"));
    // An empty one never stops.
    assert_eq!(continuation("hello", &["-n", "24", "--stop", ""]).0, text);
}

#[test]
fn one_new_token_has_no_decoding_rate() {
    let result = generate("hello", &["-n", "1", "--json"]).json();
    assert_eq!((result["ids"].as_array().map(Vec::len), &result["decode_tokens_per_second"]), (Some(1), &Value::Null));
    generate("hello", &["-n", "1"]).succeeds();
}

#[test]
fn a_prompt_without_tokens_fails() {
    generate("", &["--json"]).fails(1, "the prompt has no tokens");
    generate("", &[]).fails(1, "the prompt has no tokens");
}

#[test]
fn prompts_in_any_script_come_back_as_they_were() {
    for prompt in [
        "😀😃 emoji 👩‍👩‍👧",
        "注意力缓存",
        "שלום עולם",
        "e\u{301}\u{200d}\u{feff}",
        "a\nb\tc\u{7}",
        "  spaces  ",
        "<|im_end|>",
    ] {
        let result = generate(prompt, &["-n", "4", "--json"]).json();
        assert_eq!(result["prompt"], prompt);
        assert!(result["prompt_tokens"].as_u64() > Some(0));
        assert!(generate(prompt, &["-n", "4"]).succeeds().stdout.starts_with(prompt));
    }
}

/// What the machine has no room for is refused before anything is allocated, unless that is not to be checked.
#[cfg(target_os = "linux")]
#[test]
fn a_cache_larger_than_memory_is_refused_with_the_numbers() {
    let refused = generate("hello", &["-n", "4294967295"]).fails(1, "tiny.gguf takes 147.6 KiB of weights and 1.0 TiB");
    assert!(refused.stderr.contains("of memory are free: ask for fewer tokens"), "{}", refused.stderr);
}

#[test]
fn sharing_changes_the_text_and_the_bytes() {
    let work = folder();
    let path = strategy(work.path());
    let run = |more: &[&str]| {
        generate("hello world of the others", &[&["-n", "24", "--json", "--ignore-eos"], more].concat()).json()
    };
    let (full, shared) = (run(&[]), run(&["--strategy", &path]));
    assert_ne!(full["ids"], shared["ids"]);
    assert_eq!(shared["kv_bytes"].as_u64().map(|bytes| bytes * 2), full["kv_bytes"].as_u64());
    assert_eq!((&shared["strategy"], &shared["policies"][0]), (&path.into(), &"sharing:1=0".into()));
}

/// The results of `--prompts` with a file of this name and content.
fn many(name: &str, content: &str, more: &[&str]) -> Value {
    let work = folder();
    let path = support::write(work.path(), name, content);
    let options = ["generate", "-m", &tiny(), "--prompts", &path, "--json", "--ignore-eos", "-n", "8"];
    run(work.path(), &[&options[..], more].concat()).json()
}

#[test]
fn prompts_of_a_file_give_what_each_gives_alone() {
    let lines = "hello the world\n\nhello\nothers sing of it in the other world\n";
    let json = "{\"prompt\": \"hello the world\", \"id\": 1}\n{\"prompt\": \"hello\"}\n{\"prompt\": \"others sing of it in the other world\"}";
    let one = many("prompts.txt", lines, &[]);
    assert_has(&one, &["model", "batch", "results", "plan_bytes", "tokens_per_second"]);
    assert_eq!(one["results"][1]["ids"], serde_json::json!(continuation("hello", &["-n", "8"]).1));
    for (name, content, batch) in [("prompts.txt", lines, "2"), ("prompts.jsonl", json, "3"), ("p.JSONL", json, "64")] {
        assert_eq!(many(name, content, &["--batch", batch])["results"], one["results"], "{name}, {batch} at once");
    }
    // Draws belong to a prompt, not to its place in a batch.
    let sample =
        |batch| many("p.txt", lines, &["--temperature", "2", "--seed", "5", "--batch", batch])["results"].clone();
    assert_eq!(sample("1"), sample("3"));
    let work = folder();
    let path = support::write(work.path(), "p.txt", "hello\nworld\n");
    let text = run(work.path(), &["generate", "-m", &tiny(), "--prompts", &path, "--ignore-eos", "-n", "8"]).succeeds();
    assert!(text.stdout.starts_with("hello") && text.stdout.contains("\nworld"), "{}", text.stdout);
}

#[test]
fn bad_files_of_prompts_fail() {
    let work = folder();
    let fails = |name: &str, content: &str, code, expected: &str| {
        let path = support::write(work.path(), name, content);
        run(work.path(), &["generate", "-m", &tiny(), "--prompts", &path]).fails(code, expected);
    };
    fails("empty.txt", "\n \n", 1, "has no prompts");
    fails("bad.jsonl", "{\"prompt\": \"a\"}\n{\"text\": 1}\n", 1, "line 2: expected");
    run(work.path(), &["generate", "-m", &tiny(), "--prompts", "none.txt"]).fails(1, "none.txt");
    run(work.path(), &["generate", "-m", &tiny()]).fails(2, "--prompt");
    run(work.path(), &["generate", "-m", &tiny(), "-p", "a", "--prompts", "b"]).fails(2, "cannot be used with");
    run(work.path(), &["generate", "-m", &tiny(), "-p", "a", "--batch", "2"]).fails(2, "cannot be used with");
}
