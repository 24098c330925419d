//! Wrong usage is refused with exit code 2 and one error line that names what was wrong; nothing is left behind.
#![allow(clippy::print_stdout)] // skipped checks say why

mod support;

use support::{files, folder, run, tiny, write};

/// Every row: what it shows, the arguments (TINY is a model, TEXT a text), and a part of the message.
type Row = (&'static str, &'static [&'static str], &'static str);

const ROWS: &[Row] = &[
    ("no command", &[], "Usage: kvsharer"),
    ("unknown command", &["bogus"], "unrecognized subcommand 'bogus'"),
    ("unknown option", &["plan", "-m", "TINY", "--bogus"], "unexpected argument '--bogus'"),
    ("share of nothing", &["search", "-m", "TINY", "--share", "0"], "give a number of layers (8) or a percentage"),
    ("share of nothing in percent", &["search", "-m", "TINY", "--share", "0%"], "above 0 and below 100"),
    ("share of all in percent", &["search", "-m", "TINY", "--share", "100%"], "above 0 and below 100"),
    ("share of more than all", &["search", "-m", "TINY", "--share", "120%"], "above 0 and below 100"),
    ("share of no number", &["search", "-m", "TINY", "--share", "abc"], "`abc` is no share"),
    ("share of all layers", &["search", "-m", "TINY", "--share", "2"], "cannot share 2 of 2 layers"),
    ("share of too many layers", &["search", "-m", "TINY", "--share", "9"], "cannot share 9 of 2 layers"),
    ("more bytes than can be shared", &["search", "-m", "TINY", "--share", "99%"], "above 0 and up to 50.0 % can be"),
    ("threshold above a cosine", &["search", "-m", "TINY", "--share", "1", "--threshold", "2"], "between -1 and 1"),
    ("threshold below a cosine", &["search", "-m", "TINY", "--share", "1", "--threshold", "-1.5"], "between -1 and 1"),
    ("threshold NaN", &["search", "-m", "TINY", "--share", "1", "--threshold", "NaN"], "between -1 and 1"),
    ("threshold of no number", &["search", "-m", "TINY", "--threshold", "half"], "invalid value 'half'"),
    ("no samples", &["search", "-m", "TINY", "--samples", "0"], "0 is not in 1.."),
    ("no tokens a sample", &["search", "-m", "TINY", "--sample-tokens", "0"], "0 is not in 1.."),
    ("unknown search", &["search", "-m", "TINY", "--strategy-search", "magic"], "possible values: paper"),
    ("unknown distance", &["search", "-m", "TINY", "--distance", "far"], "possible values: code, paper"),
    ("unknown order", &["search", "-m", "TINY", "--order", "up"], "possible values: dissimilar, similar, random"),
    ("device of another build", &["plan", "-m", "TINY", "--device", "cuda"], "no cuda backend"),
    ("numbered device of another build", &["plan", "-m", "TINY", "--device", "wgpu:1"], "no wgpu backend"),
    ("device with a bad index", &["plan", "-m", "TINY", "--device", "cuda:x"], "expected cpu, cuda[:INDEX]"),
    ("unknown device", &["plan", "-m", "TINY", "--device", "tpu"], "expected cpu, cuda[:INDEX]"),
    (
        "half weights in half",
        &["plan", "-m", "TINY", "--dtype", "f16", "--weights", "bf16"],
        "--weights is for --dtype f32",
    ),
    ("unknown dtype", &["plan", "-m", "TINY", "--dtype", "f64"], "possible values: f32, f16, bf16"),
    ("negative seed", &["plan", "-m", "TINY", "--seed", "-1"], "'-1'"),
    ("no threads", &["plan", "-m", "TINY", "--threads", "0"], "0 is not in 1..=1024"),
    (
        "unknown policy",
        &["plan", "-m", "TINY", "--policy", "magic"],
        "no policy `magic`: known are full, streaming-llm",
    ),
    ("empty policy", &["plan", "-m", "TINY", "--policy", ""], "no policy ``"),
    ("unknown policy option", &["plan", "-m", "TINY", "--policy", "streaming-llm:sink=4"], "no option `sink`"),
    ("policy option without value", &["plan", "-m", "TINY", "--policy", "streaming-llm:sinks"], "write `key=value`"),
    ("bad policy value", &["plan", "-m", "TINY", "--policy", "streaming-llm:window=0"], "window = `0` is not possible"),
    (
        "policy option given twice",
        &["eval", "-m", "TINY", "--task", "perplexity=TEXT", "--policy", "streaming-llm:sinks=1,sinks=2"],
        "`sinks` is given twice",
    ),
    (
        "two evictors",
        &["plan", "-m", "TINY", "--policy", "streaming-llm", "--policy", "streaming-llm:window=8"],
        "both `streaming-llm:sinks=4,window=508` and `streaming-llm:sinks=4,window=8` evict",
    ),
    ("no task", &["eval", "-m", "TINY"], "--task <NAME=PATH>"),
    ("unknown task", &["eval", "-m", "TINY", "--task", "magic=TEXT"], "no task `magic`: known are hellaswag, piqa"),
    ("task without path", &["eval", "-m", "TINY", "--task", "perplexity"], "needs a text file, or builtin:demo"),
    ("task with an empty path", &["eval", "-m", "TINY", "--task", "perplexity="], "expected NAME=PATH"),
    (
        "window that predicts nothing",
        &["eval", "-m", "TINY", "--task", "perplexity=TEXT", "--window", "1"],
        "1 is not in 2..",
    ),
    ("limit of nothing", &["eval", "-m", "TINY", "--task", "perplexity=TEXT", "--limit", "0"], "0 is not in 1.."),
    ("no prompt", &["generate", "-m", "TINY"], "--prompt <PROMPT>"),
    ("no new tokens", &["generate", "-m", "TINY", "-p", "a", "-n", "0"], "0 is not in 1.."),
    ("negative temperature", &["generate", "-m", "TINY", "-p", "a", "--temperature", "-1"], "temperature = -1"),
    ("temperature NaN", &["generate", "-m", "TINY", "-p", "a", "--temperature", "NaN"], "temperature = NaN"),
    ("empty nucleus", &["generate", "-m", "TINY", "-p", "a", "--top-p", "0"], "top-p = 0 is out of range"),
    ("nucleus above 1", &["generate", "-m", "TINY", "-p", "a", "--top-p", "1.1"], "top-p = 1.1 is out of range"),
    ("negative top-k", &["generate", "-m", "TINY", "-p", "a", "--top-k", "-1"], "'-1'"),
    (
        "no repetition penalty",
        &["generate", "-m", "TINY", "-p", "a", "--repetition-penalty", "0"],
        "repetition penalty = 0 is out of range",
    ),
    ("unknown model", &["plan", "-m", "no-such-model"], "no model `no-such-model`: give a name from `kvsharer models`"),
    ("missing model file", &["plan", "-m", "no/such/model.gguf"], "no model `no/such/model.gguf`"),
    ("empty model name", &["plan", "-m", ""], "no model ``"),
    ("unknown random shape", &["plan", "-m", "random:unknown"], "no random shape `unknown`: known are tiny"),
    ("unknown model to fetch", &["fetch", "no-such-model"], "known are smollm2-135m-instruct"),
    ("no model to fetch", &["fetch"], "<MODEL>"),
    ("no sequences", &["plan", "-m", "TINY", "--batch", "0"], "0 is not in 1.."),
    ("no tokens", &["plan", "-m", "TINY", "--tokens", "0"], "0 is not in 1.."),
    ("no chunk", &["plan", "-m", "TINY", "--chunk", "0"], "0 is not in 1.."),
    ("more sequences than a number holds", &["plan", "-m", "TINY", "--batch", "4294967296"], "is not in 1.."),
    (
        "more bytes than a number holds",
        &["plan", "-m", "TINY", "--batch", "4294967295", "--tokens", "4294967295"],
        "more than any memory holds",
    ),
    (
        "more bytes than a number holds, of a large model",
        &["plan", "-m", "random:llama2-13b", "--batch", "67108864", "--tokens", "67108864"],
        "more than any memory holds",
    ),
];

#[test]
fn wrong_usage_exits_with_2_and_one_error_and_leaves_nothing() {
    let texts = folder();
    let text = write(texts.path(), "text.txt", support::TEXT);
    for (name, args, expected) in ROWS {
        for json in [false, true] {
            let work = folder();
            let mut args: Vec<String> =
                args.iter().map(|arg| arg.replace("TINY", &tiny()).replace("TEXT", &text)).collect();
            if json && !args.is_empty() {
                args.push("--json".into());
            }
            println!("{name}: kvsharer {}", args.join(" "));
            let result = run(work.path(), &args);
            if args.is_empty() {
                // Without a command clap prints the help, which is no error line.
                assert_eq!(result.code, Some(2));
                assert!(result.stderr.contains(expected) && result.stdout.is_empty());
            } else {
                result.fails(2, expected);
            }
            assert!(files(work.path()).is_empty(), "{name} left a file");
        }
    }
}

#[test]
fn random_weights_have_no_text() {
    let work = folder();
    let text = write(work.path(), "text.txt", support::TEXT);
    let task = format!("perplexity={text}");
    for args in [
        &["generate", "-m", "random:tiny", "-p", "a"][..],
        &["eval", "-m", "random:tiny", "--task", &task],
        &["search", "-m", "random:tiny", "--share", "1"],
    ] {
        run(work.path(), args).fails(1, "model `random:tiny` has no tokenizer");
    }
    assert_eq!(files(work.path()).len(), 1);
}

#[cfg(unix)]
#[test]
fn arguments_that_are_no_text_are_refused() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let (work, tiny) = (folder(), tiny());
    let prompt =
        [OsStr::new("generate"), OsStr::new("-m"), tiny.as_ref(), OsStr::new("-p"), OsStr::from_bytes(b"a\xff")];
    run(work.path(), &prompt).fails(2, "invalid UTF-8");
}
