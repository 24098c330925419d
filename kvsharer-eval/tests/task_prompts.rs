//! Every prompt of every task against the two harnesses' as `fixtures/task_reference.py` restates them.

use kvsharer_eval::tasks::{Ask, Choice, Item, Protocol, TaskFiles, find_task, tasks};
use serde::Deserialize;
use std::collections::HashSet;
use std::path::Path;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    task: String,
    protocol: String,
    path: String,
    shots: usize,
    dev: Option<String>,
    /// Of cases that are about prompts that are too long.
    max_length: Option<usize>,
    items: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    gold: Option<usize>,
    requests: Vec<Request>,
    subject: Option<String>,
    words: Option<usize>,
    bytes: Option<usize>,
    reference: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Request {
    Continuation { context: String, continuation: String },
    Prompt { prompt: String },
    Likelihood { input: String, cont: String },
}

impl Case {
    /// Our name of the task: the reference tells the two parts of RACE in OpenCompass by their folders.
    fn name(&self) -> String {
        match (&*self.task, self.protocol()) {
            ("race", Protocol::OpenCompass) => self.path.replace('/', "-"),
            _ => self.task.clone(),
        }
    }

    fn protocol(&self) -> Protocol {
        match &*self.protocol {
            "lm-eval" => Protocol::LmEval,
            "opencompass" => Protocol::OpenCompass,
            other => panic!("protocol {other}"),
        }
    }
}

fn reference() -> Vec<Case> {
    let reference: Reference = serde_json::from_str(include_str!("fixtures/task_prompts.json")).unwrap();
    reference.cases
}

/// What the item asks, with all that stands before it.
fn requests(item: &Item, protocol: Protocol) -> Vec<Request> {
    let before = item.before(item.shots.len(), protocol);
    let behind = |text: &str| format!("{before}{text}");
    let continuation = |Choice { context, continuation, .. }: &Choice| Request::Continuation {
        context: behind(context),
        continuation: continuation.clone(),
    };
    match &item.ask {
        Ask::Choices(choices) => choices.iter().map(continuation).collect(),
        Ask::Continuation(choice) => vec![continuation(choice)],
        Ask::Prompts(prompts) => prompts.iter().map(|prompt| Request::Prompt { prompt: behind(prompt) }).collect(),
        Ask::Likelihoods(pairs) => {
            pairs.iter().map(|(input, cont)| Request::Likelihood { input: behind(input), cont: cont.clone() }).collect()
        }
        Ask::Document { text, .. } => {
            vec![Request::Continuation { context: String::new(), continuation: text.clone() }]
        }
        Ask::Summary { prompt, .. } => vec![Request::Prompt { prompt: behind(prompt) }],
    }
}

#[test]
fn prompts_and_right_choices_are_the_harnesses() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks");
    for case in reference().iter().filter(|case| case.max_length.is_none()) {
        let named = format!("{} by {} from {} with {} examples", case.task, case.protocol, case.path, case.shots);
        let task = find_task(&case.name()).unwrap_or_else(|| panic!("{named}: no such task"));
        let files = TaskFiles {
            dev: case.dev.as_ref().map(|dev| folder.join(dev)),
            shots: Some(case.shots),
            ..TaskFiles::new(folder.join(&case.path))
        };
        let read = task.read(&files, case.protocol()).unwrap_or_else(|error| panic!("{named}: {error}"));
        assert_eq!(read.shots, case.shots, "{named}");
        assert_eq!(read.items.len(), case.items.len(), "{named}");
        for (item, expected) in read.items.iter().zip(&case.items) {
            let named = format!("{named}, {}", item.place);
            assert_eq!(requests(item, case.protocol()), expected.requests, "{named}");
            assert_eq!(item.gold, expected.gold, "{named}");
            if expected.subject.is_some() {
                assert_eq!(item.subset, expected.subject, "{named}");
            }
            match &item.ask {
                Ask::Document { words, bytes, .. } => {
                    assert_eq!((Some(*words), Some(*bytes)), (expected.words, expected.bytes), "{named}");
                }
                Ask::Summary { reference, .. } => {
                    assert_eq!(Some(reference), expected.reference.as_ref(), "{named}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn examples_can_be_left_out_from_the_end() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks/mmlu");
    // The examples are found beside the items, as many as the protocol shows.
    let read = find_task("mmlu").unwrap().read(&TaskFiles::new(folder.join("test")), Protocol::OpenCompass).unwrap();
    let item = &read.items[0];
    assert_eq!(item.shots.len(), 5);
    assert_eq!(item.before(0, Protocol::OpenCompass), item.head);
    for fewer in 1..5 {
        let [less, more] = [fewer, fewer + 1].map(|shots| item.before(shots, Protocol::OpenCompass));
        assert_eq!(more, format!("{less}{}\n", item.shots[fewer]));
    }
}

#[test]
fn every_task_has_a_case_for_each_of_its_protocols() {
    let cases: HashSet<(String, &str)> = reference().iter().map(|case| (case.name(), case.protocol().name())).collect();
    for task in tasks() {
        for protocol in task.protocols() {
            let pair = (task.name.to_owned(), protocol.name());
            assert!(cases.contains(&pair), "{pair:?} is compared with nothing");
        }
    }
}
