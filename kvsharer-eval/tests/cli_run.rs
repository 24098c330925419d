//! Experiments: what is finished stays finished, whatever ends a run; shards join to what one run gives.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{folder, program, run, tiny, write};

const CELLS: usize = 12;

/// Two seeds, a search, an eviction and a benchmark, on the tiny model.
fn experiment(folder: &Path) -> String {
    let items = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks/choices.jsonl");
    let text = format!(
        r#"
name = "small"
models = ["{}"]
seeds = [0, 1]
[[strategy]]
name = "full"
[[strategy]]
name = "random"
search = {{ share = 1, order = "random", threshold = -1, samples = 2, sample_tokens = 8 }}
[[stack]]
name = "streaming"
policies = ["streaming-llm:sinks=1,window=6"]
[[task]]
task = "perplexity"
path = "builtin:demo"
window = 48
chunk = 4
limit = 40
[[task]]
task = "choices"
path = "{}"
max_length = 64
[[task]]
task = "choices"
path = "{}"
protocol = "opencompass"
max_length = 64
"#,
        tiny(),
        items.display(),
        items.display()
    );
    write(folder, "small.toml", text)
}

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    records.sort_by_key(|record| record["cell"].as_u64());
    for record in &mut records {
        let fields = record.as_object_mut().unwrap();
        ["seconds", "finished", "search_seconds"].iter().for_each(|field| _ = fields.remove(*field));
        if let Some(result) = fields["result"].as_object_mut() {
            result.remove("tokens_per_second");
        }
    }
    records
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_as_one_that_is_not() {
    let folder = folder();
    let file = experiment(folder.path());
    run(folder.path(), &["run", &file, "-o", "whole.jsonl"]).succeeds();
    let whole = records(&folder.path().join("whole.jsonl"));
    assert_eq!(whole.len(), CELLS);

    let output = folder.path().join("killed.jsonl");
    let mut kills = 0;
    // Moments spread over the run: later and later, so that it ends.
    for attempt in 1.. {
        let mut child = program()
            .args(["run", &file, "-o", "killed.jsonl"])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_millis(40 * attempt);
        let finished = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > end {
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        match finished {
            Some(status) => {
                assert!(status.success(), "attempt {attempt}");
                break;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
        }
        assert!(attempt < 100, "the run makes no progress");
    }
    assert!(kills > 0, "the run was too short to be killed");
    assert_eq!(records(&output), whole);
}

#[test]
fn shards_join_to_the_whole_and_do_not_mix_with_others() {
    let folder = folder();
    let file = experiment(folder.path());
    run(folder.path(), &["run", &file, "-o", "whole.jsonl"]).succeeds();
    for shard in ["0/3", "1/3", "2/3"] {
        run(folder.path(), &["run", &file, "--shard", shard]).succeeds();
    }
    let shards = ["small-0-of-3.jsonl", "small-1-of-3.jsonl", "small-2-of-3.jsonl"];
    let merged = run(folder.path(), &["merge", shards[0], shards[2], shards[1], "-o", "merged.jsonl", "--json"]).json();
    assert_eq!((merged["cells"].as_u64(), merged["finished"].as_u64()), (Some(12), Some(12)));
    let whole = records(&folder.path().join("whole.jsonl"));
    assert_eq!(records(&folder.path().join("merged.jsonl")), whole);
    // A cell in two files with one result is one cell.
    run(folder.path(), &["merge", "merged.jsonl", shards[1], "-o", "again.jsonl"]).succeeds();
    assert_eq!(records(&folder.path().join("again.jsonl")), whole);

    run(folder.path(), &["merge", shards[0], "-o", "part.jsonl"])
        .fails(1, "4 of 12 cells have results, missing are 1, 2, 4");
    assert!(!folder.path().join("part.jsonl").exists());
    run(folder.path(), &["merge", shards[0], "-o", "part.jsonl", "--partial"]).succeeds();

    let line = std::fs::read_to_string(folder.path().join(shards[0])).unwrap().lines().next().unwrap().to_owned();
    let version = line.replace(concat!("kvsharer ", env!("CARGO_PKG_VERSION")), "kvsharer 9.9.9");
    write(folder.path(), "old.jsonl", version + "\n");
    run(folder.path(), &["merge", shards[1], "old.jsonl", "-o", "mixed.jsonl"])
        .fails(1, "old.jsonl:1: version is kvsharer 9.9.9");
    run(folder.path(), &["run", &file, "-o", "old.jsonl"]).fails(1, "version is kvsharer 9.9.9");
    write(folder.path(), "other.jsonl", line.replace("\"cell\":0", "\"cell\":4") + "\n");
    run(folder.path(), &["merge", "whole.jsonl", "other.jsonl", "-o", "mixed.jsonl"])
        .fails(1, "another result of cell 4");
}

#[test]
fn an_incomplete_line_is_cut_off_and_a_foreign_one_is_refused() {
    let folder = folder();
    let file = experiment(folder.path());
    run(folder.path(), &["run", &file, "-o", "r.jsonl"]).succeeds();
    let path = folder.path().join("r.jsonl");
    let whole = records(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&path, format!("{}\n{}", lines[..5].join("\n"), &lines[5][..lines[5].len() / 2])).unwrap();
    let resumed = run(folder.path(), &["run", &file, "-o", "r.jsonl"]).succeeds();
    assert!(resumed.stderr.contains("cut off an incomplete last line") && resumed.stderr.contains("5 of 12 cells"));
    assert_eq!(records(&path), whole);

    std::fs::write(&path, format!("{}\nhello\n", lines[0])).unwrap();
    run(folder.path(), &["run", &file, "-o", "r.jsonl"]).fails(1, "r.jsonl:2: no result of `kvsharer run`");
    let other = write(
        folder.path(),
        "other.toml",
        std::fs::read_to_string(&file).unwrap().replace("window = 48", "window = 40"),
    );
    std::fs::write(&path, format!("{}\n", lines[0])).unwrap();
    run(folder.path(), &["run", &other, "-o", "r.jsonl"]).fails(1, "results of different experiments do not compare");
}

#[test]
fn a_cell_that_fails_does_not_keep_the_others_from_running() {
    let folder = folder();
    let text = std::fs::read_to_string(experiment(folder.path())).unwrap();
    let file = write(folder.path(), "bad.toml", text.replace("share = 1,", "share = 7,"));
    let failed = run(folder.path(), &["run", &file, "-o", "r.jsonl"]);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains("6 of 12 cells failed; run again to retry them"), "{}", failed.stderr);
    assert!(failed.stderr.contains("cannot share 7 of 2 layers"), "{}", failed.stderr);
    assert_eq!(records(&folder.path().join("r.jsonl")).len(), 6);
}

#[test]
fn wrong_experiments_are_refused_before_anything_runs() {
    let folder = folder();
    let text = std::fs::read_to_string(experiment(folder.path())).unwrap();
    let many = format!("{:?}", vec![0; 200_000]);
    for (from, to, expected) in [
        ("[0, 1]", &*many, "it has 1200000 cells, at most 1048576 are possible"),
        ("seeds", "sedes", "unknown field `sedes`"),
        ("builtin:demo", "nowhere.txt", "nowhere.txt"),
        ("\"perplexity\"", "\"magic\"", "no task `magic`"),
        ("window=6", "window=0", "window = `0` is not possible"),
        ("[[stack]]", "[[stack", "no experiment file"),
    ] {
        let file = write(folder.path(), "wrong.toml", text.replace(from, to));
        let run = run(folder.path(), &["run", &file, "-o", "r.jsonl"]);
        assert!(run.code == Some(1) || run.code == Some(2), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
        assert!(!folder.path().join("r.jsonl").exists(), "{expected}");
    }
    run(folder.path(), &["run", "small.toml", "--shard", "3/3"]).fails(2, "is no shard");
}

#[test]
fn a_bench_tells_speed_and_memory_of_every_batch() {
    let folder = folder();
    let args =
        ["bench", "-m", &tiny(), "--batch", "1,3", "--prompt", "8", "--generate", "4", "--repeats", "2", "--json"];
    let rows = run(folder.path(), &args).json();
    for (row, batch) in rows.as_array().unwrap().iter().zip([1, 3]) {
        assert_eq!((row["batch"].as_u64(), row["generated"].as_u64()), (Some(batch), Some(4)));
        assert_eq!(row["kv_bytes_plan"], row["kv_bytes"]);
        for field in ["prefill_ms", "decode_ms_per_step", "tokens_per_second"] {
            let of = |key: &str| row[field][key].as_f64().unwrap();
            assert!(0.0 < of("min") && of("min") <= of("median") && of("median") <= of("max"), "{row}");
        }
    }
}

#[test]
fn a_bench_within_a_budget_runs_the_most_sequences_that_fit_with_and_without_the_policies() {
    let folder = folder();
    // 256 bytes a token, 12 tokens.
    let args = ["bench", "-m", &tiny(), "--prompt", "8", "--generate", "4", "--repeats", "1", "--kv-budget", "10kB"];
    let policy = ["--policy", "streaming-llm:sinks=1,window=5"];
    let rows = run(folder.path(), &[&args[..], &policy, &["--json"]].concat()).json();
    let of = |row: usize, key: &str| rows[row][key].as_u64().unwrap();
    assert_eq!((of(0, "batch"), of(0, "kv_bytes_plan"), of(0, "kv_budget")), (3, 3 * 12 * 256, 10_000));
    assert!(of(1, "batch") > 3 && of(1, "kv_bytes_plan") <= 10_000, "{}", rows[1]);
    assert!(of(1, "kv_bytes_plan") + of(1, "kv_bytes_plan") / of(1, "batch") > 10_000, "one more does not fit");
    let text = run(folder.path(), &[&args[..], &policy].concat()).succeeds().stdout;
    assert!(text.contains("sequences instead of 3"), "{text}");
    run(folder.path(), &[&args[..9], &["--kv-budget", "1kB"]].concat()).fails(2, "one sequence takes");
}

#[test]
fn the_ready_experiments_can_be_read_and_every_one_has_a_small_version() {
    let experiments = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
    let files = std::fs::read_dir(&experiments).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    assert!(files.len() >= 10);
    for file in &files {
        let cells = run(&experiments, &["run", file.to_str().unwrap(), "--dry-run", "--json"]).json();
        assert!(cells.as_array().is_some_and(|cells| cells.len() > 1), "{}", file.display());
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let small = format!("{}-small.toml", stem.trim_end_matches("-small").trim_end_matches("-cpu"));
        assert!(files.contains(&experiments.join(&small)), "{small}");
    }
}
