//! `chat` as a program uses it: messages on stdin, answers on stdout, only new tokens run.

mod support;

use serde_json::Value;
use std::io::Write;
use std::process::Stdio;
use support::{Run, folder, program, strategy, tiny, write};

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Runs `chat` on the tiny model with a template and this text on stdin.
fn chat(template: &str, input: impl AsRef<[u8]>, more: &[&str]) -> Run {
    let work = folder();
    let template = write(work.path(), "template.jinja", template);
    let options = ["chat", "-m", &tiny(), "--template-file", &template, "--ignore-eos", "-n", "8"];
    let mut child = program()
        .args([&options[..], more].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that refuses its options reads nothing.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_ref());
    child.wait_with_output().expect("it ends").into()
}

/// The answers as JSON.
fn answers(template: &str, input: &str, more: &[&str]) -> Vec<Value> {
    let run = chat(template, input, &[&["--json"], more].concat()).succeeds();
    run.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

fn number(answer: &Value, field: &str) -> u64 {
    answer[field].as_u64().unwrap_or_else(|| panic!("no {field} in {answer}"))
}

#[test]
fn later_turns_run_only_what_is_new() {
    let answers = answers(CHATML, "hello\n\n  \nthe world of others\nagain\n", &[]);
    assert_eq!(answers.len(), 3);
    assert_eq!(number(&answers[0], "cached_tokens"), 0);
    for pair in answers.windows(2) {
        // All that was run before: the earlier text and its answer but for the token that was only chosen.
        let before = number(&pair[0], "prompt_tokens") + pair[0]["ids"].as_array().map_or(0, Vec::len) as u64 - 1;
        assert_eq!(number(&pair[1], "cached_tokens"), before);
        assert!(number(&pair[1], "prompt_tokens") > before);
    }
}

#[test]
fn reset_forgets_and_exit_ends() {
    let answers = answers(CHATML, "hello\nworld\n/reset\nhello\n/exit\nnever\n", &["--system", "be brief"]);
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["ids"], answers[2]["ids"]);
    assert_eq!(number(&answers[2], "cached_tokens"), 0);
}

#[test]
fn a_template_that_changes_the_past_runs_anew() {
    let last = "{{ messages[-1].content }}";
    let answers = answers(last, "hello\nworld\n", &[]);
    assert_eq!(number(&answers[1], "cached_tokens"), 0);
    assert_eq!(answers[1]["ids"], self::answers(last, "world\n", &[])[0]["ids"]);
}

#[test]
fn text_answers_stand_alone_on_stdout() {
    let expected = answers(CHATML, "hello\n", &[])[0]["content"].clone();
    let run = chat(CHATML, "hello", &[]).succeeds();
    assert_eq!(Value::from(run.stdout.strip_suffix('\n').expect("a line")), expected);
    assert!(run.stderr.contains("0 cached"), "{}", run.stderr);
    assert_eq!(chat(CHATML, "", &[]).succeeds().stdout, "");
}

#[test]
fn system_prompts_variables_and_sharing_change_the_answer_or_its_cost() {
    let work = folder();
    let shared = strategy(work.path());
    let plain = &answers(CHATML, "hello\n", &[])[0];
    let system = &answers(CHATML, "hello\n", &["--system", "sing of the world"])[0];
    assert!(number(system, "prompt_tokens") > number(plain, "prompt_tokens"));
    let sharing = &answers(CHATML, "hello\n", &["--strategy", &shared])[0];
    assert_eq!(number(sharing, "kv_bytes") * 2, number(plain, "kv_bytes"));
    let variable = "{{ 'x' * times }}{{ messages[0].content }}";
    let times = |value| number(&answers(variable, "hello\n", &["--template-var", value])[0], "prompt_tokens");
    assert!(times("times=9") > times("times=1"));
}

#[test]
fn an_evicting_policy_goes_on_where_the_context_ends() {
    let input = "hello world\n".repeat(6);
    chat(CHATML, &input, &["--json", "--context", "64"]).fails_after_output(1, "--context 64 holds no more");
    let policy = ["--context", "64", "--policy", "streaming-llm:sinks=4,window=28", "--chunk", "4"];
    assert_eq!(answers(CHATML, &input, &policy).len(), 6);
}

#[test]
fn what_is_wrong_is_told_in_one_line() {
    let work = folder();
    support::run(work.path(), &["chat", "-m", &tiny()]).fails(1, "has no chat template");
    support::run(work.path(), &["chat", "-m", "random:tiny"]).fails(1, "has no tokenizer");
    support::run(work.path(), &["chat", "-m", &tiny(), "--template-file", "none.jinja"]).fails(1, "none.jinja");
    support::run(work.path(), &["chat", "-m", &tiny(), "--template", "tools"]).fails(1, "no chat template `tools`");
    chat("\n{% if %}", "hello\n", &[]).fails(1, "line 2 of the chat template");
    chat("{{ raise_exception('only in rhymes') }}", "hello\n", &[]).fails(1, "only in rhymes");
    chat("{{ '' }}", "hello\n", &[]).fails(1, "the prompt has no tokens");
    chat(CHATML, "hello\n", &["--template-var", "x"]).fails(2, "expected NAME=JSON");
    chat(CHATML, "hello\n", &["--template-var", "x=yes"]).fails(2, "is no JSON");
    chat(CHATML, "hello\n", &["--top-p", "2"]).fails(2, "top-p");
    chat(CHATML, [0xff, b'\n'], &[]).fails(1, "stdin");
}
