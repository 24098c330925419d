//! Files of benchmarks as they come: cut off, mislabelled, in other line ends, or no such file at all.

use kvsharer_eval::tasks::{Ask, Item, Protocol, TaskError, TaskFiles, find_task, tasks};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Read {
    items: Vec<Item>,
    bad: Vec<String>,
    left_out: usize,
}

fn read_by(task: &str, files: &TaskFiles, protocol: Protocol) -> Result<Read, TaskError> {
    let read = find_task(task).expect(task).read(files, protocol)?;
    Ok(Read { items: read.items, bad: read.bad, left_out: read.left_out })
}

/// By the first protocol that the task has, without examples.
fn read(task: &str, path: &Path) -> Result<Read, TaskError> {
    let protocol = find_task(task).expect(task).protocols().next().expect("a protocol");
    read_by(task, &TaskFiles { shots: Some(0), ..TaskFiles::new(path) }, protocol)
}

fn write(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
    fs::write(&path, bytes).expect("file");
    path
}

fn read_text(task: &str, name: &str, bytes: impl AsRef<[u8]>) -> Result<Read, TaskError> {
    let folder = tempfile::tempdir().expect("folder");
    read(task, &write(&folder, name, bytes))
}

#[track_caller]
fn refused(task: &str, name: &str, bytes: impl AsRef<[u8]>, line: usize, fault: &str) {
    let error = match read_text(task, name, bytes) {
        Ok(read) => panic!("{} items of {task}", read.items.len()),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(&format!("{name}:{line}: {fault}")), "{error}");
}

fn asked(item: &Item) -> Vec<String> {
    match &item.ask {
        Ask::Choices(choices) => choices.iter().map(|choice| choice.context.clone() + &choice.continuation).collect(),
        Ask::Prompts(prompts) => prompts.clone(),
        Ask::Likelihoods(pairs) => pairs.iter().map(|(prompt, _)| prompt.clone()).collect(),
        Ask::Continuation(choice) => vec![choice.context.clone() + &choice.continuation],
        Ask::Document { text, .. } => vec![text.clone()],
        Ask::Summary { prompt, .. } => vec![prompt.clone()],
    }
}

const CHOICES: &str = r#"{"query": "q", "choices": ["a", "b"], "gold": 0}"#;
const CMMLU: &str = ",Question,A,B,C,D,Answer\n";

#[test]
fn bad_lines_are_named() {
    let second = |line: &str| format!("{CHOICES}\n{line}\n{CHOICES}\n");
    for (line, fault) in [
        (r#"{"query": "q", "choices": ["a", "b"]}"#, "has no `gold`"),
        (r#"{"query": "q", "choices": ["a", "b"], "gold": null}"#, "has no `gold`"),
        (r#"{"query": "q", "choices": ["a", "b"], "gold": 2}"#, "`gold` is 2, expected 0 to 1"),
        (r#"{"query": "q", "choices": ["a", "b"], "gold": -1}"#, "`gold` is -1, expected a whole number"),
        (r#"{"query": "q", "choices": [], "gold": 0}"#, "has 0 choices, at least 2 are needed"),
        (r#"{"query": "q", "choices": ["a"], "gold": 0}"#, "has 1 choices, at least 2 are needed"),
        (r#"{"query": "q", "choices": ["a", " "], "gold": 0}"#, "choice 1 is empty"),
        (r#"{"query": "q", "choices": ["a", 3], "gold": 0}"#, "`choices.1` is 3, expected a text"),
        (r#"{"query": "q", "choices": "ab", "gold": 0}"#, "`choices` is \"ab\", expected a list"),
        (r#"{"query": ["q"], "choices": ["a", "b"], "gold": 0}"#, "`query` is [\"q\"], expected a text"),
        (r#"["q", ["a", "b"], 0]"#, "`the item` is [\"q\",[\"a\",\"b\"],0], expected an object"),
        ("7", "`the item` is 7, expected an object"),
        (r#"{"query": "q", "choi"#, "is no JSON"),
    ] {
        refused("choices", "own.jsonl", second(line), 2, fault);
    }
    refused("choices", "own.jsonl", [second("").as_bytes(), b"{\"query\": \"\xff\"}"].concat(), 4, "is no UTF-8 text");
}

#[test]
fn bad_items_of_each_form_are_named() {
    let bytes = |text: &str, tail: &[u8]| [text.as_bytes(), tail].concat();
    refused("lambada_openai", "a.jsonl", r#"{"text": "ends here "}"#, 1, "`text` ends with a space");
    refused("lambada_openai", "a.jsonl", "\n\n{\"text\": \" \"}", 3, "`text` is empty");
    refused("lambada_standard", "a.txt", bytes("a b\n", b"c \xe4"), 2, "is no UTF-8 text");
    refused("wikitext", "a.raw", bytes(" = A = \n", b"c \xe4"), 1, "is no UTF-8 text");
    refused(
        "cmnli",
        "a.json",
        r#"{"sentence1": "一", "sentence2": "二", "label": "0"}"#,
        1,
        "`label` is 0, expected contradiction",
    );
    refused("ocnli", "a.json", r#"{"sentence1": "一", "label": "-"}"#, 1, "has no `sentence2`");
    let wsc = r#"{"text": "一", "target": {"span1_text": "一", "span2_text": "二"}, "label": "yes"}"#;
    refused("cluewsc", "a.json", wsc, 1, "`label` is \"yes\", expected true or false");
    refused("cluewsc", "a.json", r#"{"text": "一", "target": [], "label": "true"}"#, 1, "has no `target.span1_text`");
    let chid = |content: &str, candidates: usize| {
        serde_json::json!({"content": content, "candidates": vec!["一"; candidates], "answer": 0}).to_string()
    };
    refused("chid", "a.json", chid("x #idiom#", 6), 1, "has 6 choices, expected 7");
    refused("chid", "a.json", chid("x", 7), 1, "`content` has no #idiom#");
    refused("xsum", "a.jsonl", r#"{"dialogue": "a", "summary": ""}"#, 1, "`summary` is empty");
}

#[test]
fn what_the_prompts_rest_on_is_checked() {
    let wsc = |index: usize, pronoun: &str| {
        format!(
            r#"{{"text": "Tom ran when he fell", "target": {{"span1_text": "Tom", "span1_index": 0, "span2_text": "{pronoun}", "span2_index": {index}}}, "label": true}}"#
        )
    };
    assert_eq!(read_text("wsc", "a.jsonl", wsc(3, "he")).expect("items").items[0].gold, Some(1));
    refused("wsc", "a.jsonl", wsc(5, "he"), 1, "`target.span2_index` is 5, expected 0 to 4");
    refused("wsc", "a.jsonl", wsc(3, "she"), 1, "`target.span2_text` stands nowhere in `text`");

    let blank =
        |sentence: &str| format!(r#"{{"sentence": "{sentence}", "option1": "a", "option2": "b", "answer": "1"}}"#);
    refused("winogrande", "a.jsonl", blank("no blank"), 1, "`sentence` has no `_`");
    refused("winogrande", "a.jsonl", blank("it ends with _ "), 1, "`sentence` has nothing after its `_`");
    refused(
        "winogrande",
        "a.jsonl",
        blank("_ x").replace("\"1\"", "\"\""),
        1,
        "`answer` is \"\", expected a whole number",
    );

    let ai2 = |label: &str, key: &str| {
        let choices = r#"[{"text": "a", "label": "A"}, {"text": "b", "label": "LABEL"}]"#.replace("LABEL", label);
        format!(r#"{{"question": {{"stem": "s", "choices": {choices}}}, "answerKey": "{key}"}}"#)
    };
    refused("arc_easy", "a.jsonl", ai2("B", "C"), 1, "`answerKey` is C, expected A, B");
    refused("openbookqa", "a.jsonl", ai2("B", ""), 1, "`answerKey` is , expected A, B");
    refused("commonsense_qa", "a.jsonl", ai2("B", "A"), 1, "`question.choices` is A, B, expected A, B, C, D, E");
    assert_eq!(read_text("arc_easy", "a.jsonl", ai2("2", "2")).expect("items").items[0].gold, Some(1));

    let copa = r#"{"premise": "p.", "question": "reason", "choice1": "a", "choice2": "b", "label": 0}"#;
    refused("copa", "a.jsonl", copa, 1, "`question` is reason, expected cause, effect");
    let swag = r#"{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "[e]", "f", "g"], "label": 0}"#;
    refused("hellaswag", "a.jsonl", swag, 1, "choice 1 is empty");
    refused("hellaswag", "a.jsonl", swag.replace(", \"g\"", ""), 1, "choice 1 is empty");
    refused("hellaswag", "a.jsonl", swag.replace("[e]", "e").replace(", \"g\"", ""), 1, "has 3 choices, expected 4");
    refused(
        "boolq",
        "a.jsonl",
        r#"{"passage": "p", "question": "q", "label": 1}"#,
        1,
        "`label` is 1, expected true or false",
    );
}

#[test]
fn articles_of_another_level_are_refused() {
    let article = |id: &str, answers: &str| {
        format!(
            r#"{{"id": "{id}", "article": "a", "questions": ["q"], "options": [["1", "2", "3", "4"]], "answers": {answers}}}"#
        )
    };
    for task in ["race", "race-high"] {
        assert_eq!(read_text(task, "1.txt", article("high1.txt", "[\"D\"]")).expect("items").items[0].gold, Some(3));
        let other = article("middle1.txt", "[\"D\"]");
        refused(task, "1.txt", other, 1, "`id` is middle1.txt, expected one of the level high");
        refused(task, "1.txt", article("high1.txt", "[\"E\"]"), 1, "`answers.0` is E, expected A, B, C, D");
        refused(task, "1.txt", article("high1.txt", "[]"), 1, "1 questions, but 0 answers");
    }
}

#[test]
fn a_file_with_nothing_but_bad_items_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let path = write(&folder, "own.jsonl", "{}\n{}\n");
    let error = read_by("choices", &TaskFiles { skip_bad: true, ..TaskFiles::new(&path) }, Protocol::LmEval);
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("own.jsonl:1: has no `query`"), "{error}");
}

#[test]
fn hashes_tell_files_apart() {
    let folder = tempfile::tempdir().expect("folder");
    let hash =
        |task: &str, path: &Path, shots| TaskFiles::new(path).hash(find_task(task).expect(task), shots).expect("hash");
    let one = write(&folder, "own.jsonl", "abc");
    let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hash("choices", &one, 0), of_abc, "of one file, that which sha256sum tells");
    let labels = write(&folder, "own-labels.lst", "0");
    let labelled = hash("piqa", &one, 0);
    fs::write(&labels, "1").expect("file");
    assert_ne!(hash("piqa", &one, 0), labelled, "labels count");
    let test = write(&folder, "test/anatomy.csv", "a");
    write(&folder, "dev/anatomy.csv", "b");
    assert_ne!(hash("cmmlu", &test, 0), hash("cmmlu", &test, 1), "examples count");
    assert_eq!(hash("cmmlu", folder.path(), 1), hash("cmmlu", &test, 1));
}

#[test]
fn items_inside_one_json_file_have_their_own_lines() {
    let question = |answer: &str| format!(r#"{{"question": "[{{\"", "choice": ["一", "二"], "answer": "{answer}"}}"#);
    let c3 =
        |second: &str| format!("[[[\"[\\\"行\"], [{}], \"id\"],\n\n[[\"行\"],\n[{second}], \"id\"]]", question("一"));
    refused("c3", "a.json", c3(&question("三")), 3, "`asked.answer` is 三, expected 一, 二");
    refused("c3", "a.json", c3("7"), 3, "has no `asked.choice`");
    refused("c3", "a.json", "{}", 1, "`the item` is {}, expected a list");
    refused("c3", "a.json", "[\n[]]", 2, "has no `0`");
    refused("c3", "a.json", "[\n7]", 2, "`the item` is 7, expected a list");
    refused("c3", "a.json", "[\n[", 2, "is no JSON");
    let five = r#"{"question": "q", "choice": ["1", "2", "3", "4", "5"], "answer": "1"}"#;
    refused("c3", "a.json", c3(five), 3, "has 5 choices, expected 4");

    let big = |second: &str| {
        format!("{{\"examples\": [\n{{\"input\": \"a\", \"target_scores\": {{\"b\": 1, \"a\": 0}}}},\n{second}]}}")
    };
    refused("bigbench", "task.json", big(r#"{"target_scores": {"b": 1, "a": 0}}"#), 3, "has no `example.input`");
    let score = "`target_scores` is \"0\", expected a number for each choice";
    refused("bigbench", "task.json", big(r#"{"input": "a", "target_scores": {"b": 1, "a": "0"}}"#), 3, score);
    refused("bigbench", "task.json", big(r#"{"input": "a", "target_scores": ["a"]}"#), 3, "");
    refused("bigbench", "task.json", big(r#"{"input": "a", "target_scores": {"b": 1}}"#), 3, "has 1 choices");
    refused("bigbench", "task.json", r#"{"examples": 3}"#, 1, "`examples` is 3, expected a list");
    refused("bigbench", "task.json", "{}", 1, "has no `examples`");
    let frame = big("{}").replace("{\"examples", "{\"task_prefix\": 1, \"examples");
    refused("bigbench", "task.json", frame, 2, "`frame.task_prefix` is 1, expected a text");
    let read = read_text("bigbench", "task.json", big(r#"{"input": "a", "target": ["b"]}"#)).expect("items");
    assert_eq!((read.items.len(), read.left_out), (1, 1));
    assert_eq!(asked(&read.items[0])[0], "Q: a\n  choice: b\n  choice: a\nA: b", "choices in the order of the file");
}

#[test]
fn bad_csv_is_named() {
    let row = "0,问,一,二,三,四,A\n";
    let after = |line: &str| format!("{CMMLU}{row}{line}");
    refused("cmmlu", "anatomy.csv", after("1,问,一,二,三,A\n"), 3, "is no CSV record (6 columns, expected 7)");
    refused("cmmlu", "anatomy.csv", after("1,\"问,一,二,三,四,A\n"), 3, "is no CSV record (");
    refused("cmmlu", "anatomy.csv", after("1,问,一,二,三,四,\"A"), 3, "is no CSV record (a quote is never closed");
    refused("cmmlu", "anatomy.csv", after("1,问,一,二,三,四,E\n"), 3, "`Answer` is E, expected A, B, C, D");
    refused("cmmlu", "anatomy.csv", after("1,,一,二,三,四,A\n"), 3, "`Question` is empty");
    refused("cmmlu", "cooking.csv", after(""), 2, "`cooking`, the name of the file, is no subject of CMMLU");
    refused("cmmlu", "anatomy.csv", [after("").as_bytes(), b"1,\xff,a,b,c,d,A\n"].concat(), 3, "is no UTF-8 text");
    refused("cmmlu", "anatomy.csv", row, 1, "is no CSV record (no header `,Question,A,B,C,D,Answer`)");
    let lines = "1,\"问\n二\n三\",一,二,三,四,A\r\n2,问,一,二,三,四,F\r\n";
    refused("cmmlu", "anatomy.csv", after(lines), 6, "`Answer` is F");
}

#[test]
fn line_ends_marks_and_quotes_do_not_matter() {
    let plain =
        read_text("cmmlu", "anatomy.csv", format!("{CMMLU}0,\"a \"\"b\"\", c\",一,二,三,四,A\n")).expect("items");
    let text = &asked(&plain.items[0])[0];
    assert!(text.starts_with("a \"b\", c\nA. 一\n"), "{text}");
    let csv = format!("\u{feff}{}0,\"a \"\"b\"\", c\",一,二,三,四,A", CMMLU.replace('\n', "\r\n"));
    assert_eq!(asked(&read_text("cmmlu", "anatomy.csv", csv).expect("items").items[0]), asked(&plain.items[0]));

    let lines = format!("\u{feff}\r\n{CHOICES}\r\n  \r\n{CHOICES}");
    let read = read_text("choices", "own.jsonl", lines).expect("items");
    assert_eq!(read.items.iter().map(|item| item.place.line()).collect::<Vec<_>>(), [2, 4]);
    let read = read_text("choices", "own.json", format!("[{CHOICES},\n{CHOICES}]")).expect("items");
    assert_eq!(read.items.len(), 2);

    let read = read_text("lambada_standard", "a.txt", "\u{feff}a  b\r\n\r\n c\r\n").expect("items");
    assert_eq!(read.items.iter().flat_map(asked).collect::<Vec<_>>(), ["a  b", " c"]);

    let page = |text: &str| read_text("wikitext", "a.raw", text).expect("items").items;
    let (unix, dos) = (page("\n = A = \n b , c\n\n = D = \n"), page("\r\n = A = \r\n b , c\r\n\r\n = D = \r\n"));
    assert_eq!(unix.iter().map(|item| item.place.line()).collect::<Vec<_>>(), [2, 5]);
    assert_eq!(
        unix.iter().map(|item| &item.ask).collect::<Vec<_>>(),
        dos.iter().map(|item| &item.ask).collect::<Vec<_>>()
    );
    let text = " = A =\nb, c\n".into();
    // "", "=", "A", "=", "b", ",", "c", "": the empty ends count.
    assert_eq!(unix[0].ask, Ask::Document { text, words: 8, bytes: 15 });
}

#[test]
fn disputed_pairs_are_left_out_or_kept_without_gold() {
    let pair = |label| format!("{{\"sentence1\": \"一\", \"sentence2\": \"二\", \"label\": \"{label}\"}}\n");
    let both = pair("-") + &pair("neutral");
    let cmnli = read_text("cmnli", "dev.json", &both).expect("items");
    assert_eq!((cmnli.items.len(), cmnli.left_out, cmnli.items[0].gold), (1, 1, Some(2)));
    let ocnli = read_text("ocnli", "dev.json", &both).expect("items");
    assert_eq!(ocnli.items.iter().map(|item| item.gold).collect::<Vec<_>>(), [None, Some(2)]);
}

#[test]
fn bad_items_can_be_skipped_and_counted() {
    let folder = tempfile::tempdir().expect("folder");
    let path = write(&folder, "own.jsonl", [CHOICES, "{", CHOICES, "[]", CHOICES, CHOICES].join("\n"));
    let files = TaskFiles { skip_bad: true, ..TaskFiles::new(&path) };
    let read = read_by("choices", &files, Protocol::LmEval).expect("items");
    assert_eq!((read.items.len(), read.bad.len()), (4, 2));
    assert!(read.bad[0].contains("own.jsonl:2: is no JSON"), "{}", read.bad[0]);
    assert!(read.bad[1].contains("own.jsonl:4: `the item` is []"), "{}", read.bad[1]);

    let limited = TaskFiles { limit: Some(2), ..files };
    let read = read_by("choices", &limited, Protocol::LmEval).expect("items");
    assert_eq!((read.items.len(), read.bad.len()), (2, 1), "what stands behind the limit is not looked at");
    let read = read_by("choices", &TaskFiles { limit: Some(1), ..TaskFiles::new(&path) }, Protocol::OpenCompass);
    assert_eq!(read.expect("the bad line is behind the limit").items.len(), 1);
}

#[test]
fn xsum_is_the_first_thousand() {
    let line = "{\"dialogue\": \"a\", \"summary\": \"b\"}\n";
    assert_eq!(read_text("xsum", "dev.jsonl", line.repeat(1000) + "{\n").expect("items").items.len(), 1000);
}

#[test]
fn labels_must_fit_the_items() {
    let folder = tempfile::tempdir().expect("folder");
    let path = write(&folder, "valid.jsonl", "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\"}\n".repeat(3));
    let error = |labels: Option<&str>| {
        labels.map(|labels| write(&folder, "valid-labels.lst", labels));
        read("piqa", &path).map(|_| ()).unwrap_err().to_string()
    };
    let missing = error(None);
    assert!(missing.contains("valid-labels.lst: "), "{missing}");
    let short = error(Some("0\n1\n"));
    assert!(short.contains("valid-labels.lst: 2 labels for 3 items"), "{short}");
    let wrong = error(Some("0\n7\n1\n"));
    assert!(wrong.contains("valid-labels.lst:2: `label` is 7, expected 0 to 1"), "{wrong}");
}

#[test]
fn missing_and_empty_files_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    let empty = write(&folder, "empty/anatomy.csv", "");
    for entry in tasks() {
        let missing = read(entry.name, &folder.path().join("nothing")).map(|_| ()).unwrap_err();
        assert!(missing.to_string().contains("nothing"), "{missing}");
        let error = read(entry.name, &empty).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("empty"), "{}: {error}", entry.name);
    }
    let error = read_text("choices", "blank.jsonl", "\n \n").map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("blank.jsonl: no items of choices here; it wants"), "{error}");
}

#[test]
fn examples_must_be_there() {
    let folder = tempfile::tempdir().expect("folder");
    let row = "0,问,一,二,三,四,B\n";
    let test = write(&folder, "test/anatomy.csv", format!("{CMMLU}{row}"));
    let by =
        |items: &Path, shots| read_by("cmmlu", &TaskFiles { shots, ..TaskFiles::new(items) }, Protocol::OpenCompass);
    let error = by(&test, None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("cmmlu by opencompass needs 5 examples, found 0: give --dev cmmlu=PATH"), "{error}");
    write(&folder, "dev/anatomy.csv", format!("{CMMLU}{}", row.repeat(3)));
    let error = by(&test, None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("needs 5 examples of anatomy, found 3"), "{error}");
    for items in [folder.path(), test.parent().expect("folder"), &test] {
        let read = by(items, Some(2)).expect("examples beside the items");
        assert_eq!((read.items.len(), read.items[0].shots.len()), (1, 2));
        assert_eq!(read.items[0].subset.as_deref(), Some("anatomy"));
    }

    let path = write(&folder, "c3.json", fixture("c3.json"));
    let files = TaskFiles { shots: Some(1), dev: Some(path.clone()), ..TaskFiles::new(&path) };
    let error = read_by("c3", &files, Protocol::OpenCompass).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("c3 is asked without examples by opencompass"), "{error}");
    let error = read_by("c3", &files, Protocol::LmEval).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("c3 has no protocol lm-eval; it has opencompass"), "{error}");
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks").join(name)).expect(name)
}
