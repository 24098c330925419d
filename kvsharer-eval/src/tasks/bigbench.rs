//! BIG-bench (Srivastava et al., arXiv 2206.04615): multiple-choice tasks in its JSON form.
//!
//! Source: lm-eval `bigbench_*_multiple_choice`, whose data set is these files through BIG-bench's own formatting, which
//! is restated here. It shows the choices in a random order that cannot be had again; here they stand as in the file.

use super::python::strip;
use super::read::{Reader, Rows, bytes, json_list, whole_json};
use super::row::{at_least_two, wrong_type};
use super::shape::Shape;
use super::{Choice, Entry, Fault, Item, Row, Rules, TaskError};
use serde_json::{Value, json};
use std::path::Path;

pub(super) const ENTRY: Entry = Entry {
    name: "bigbench",
    summary: "a multiple-choice task of BIG-bench",
    files: "task.json (examples with input and target_scores)",
    lm_eval: Some(Rules::new("bigbench_*_multiple_choice", &["acc"], lm_eval)),
    opencompass: None,
    reader: Reader::file(examples),
};

/// The examples, each with the task's frame around it and its choices in order of the file.
fn examples(path: &Path) -> Result<Rows, TaskError> {
    let rows = json_list(path, Some("examples"))?;
    let (Ok(task), Ok(shape)) = (whole_json(path), serde_json::from_slice::<Shape>(&bytes(path)?)) else {
        return Ok(rows);
    };
    let mut frame = task.value;
    if let Some(fields) = frame.as_object_mut() {
        fields.remove("examples");
    }
    let shapes = shape.get("examples").map_or(&[][..], Shape::elements);
    let framed = |(row, shape): (Result<Row, TaskError>, &Shape)| {
        let choices = shape.get("target_scores").map(Shape::keys).unwrap_or_default();
        row.map(|row| Row { value: json!({"frame": frame, "example": row.value, "choices": choices}), ..row })
    };
    let shapes = shapes.iter().chain(std::iter::repeat(&Shape::Plain));
    Ok(rows.into_iter().zip(shapes).map(framed).collect())
}

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let example = row.get("example")?;
    if !example.is_object() {
        return Err(wrong_type("the example", "an object", example));
    }
    // A question to be answered freely, which some tasks have among the others.
    if example.get("target_scores").is_none_or(Value::is_null) {
        return Ok(None);
    }
    let frame = |key: &str, usual| match row.get(&format!("frame.{key}")) {
        Ok(_) => row.text(&format!("frame.{key}")),
        Err(_) => Ok(usual),
    };
    let names = (0..row.list("choices")?.len()).map(|index| row.text(&format!("choices.{index}")));
    let names: Vec<&str> = names.collect::<Result<_, _>>()?;
    let choices: Vec<&str> = names.iter().map(|name| strip(name)).collect();
    at_least_two(&choices)?;
    let mut listed = String::new();
    if row.get("frame.append_choices_to_input").is_err() || row.flag("frame.append_choices_to_input")? {
        let prefix = frame("choice_prefix", "\n  choice: ")?;
        listed = names.iter().map(|name| format!("{prefix}{name}")).collect();
    }
    let (before, after) = (frame("example_input_prefix", "\nQ: ")?, frame("example_output_prefix", "\nA: ")?);
    let input = row.text("example.input")?;
    let context = format!("{}{before}{input}{listed}{after}", frame("task_prefix", "")?);
    let context = strip(&context);
    let gold = gold(row, example, &names)?;
    Ok(Some(Item::choices(&row.place, choices.iter().map(|choice| Choice::new(context, *choice)).collect(), gold)))
}

/// The `target` if the example has one as well, else the first choice of the highest score.
fn gold(row: &Row, example: &Value, names: &[&str]) -> Result<usize, Fault> {
    const TARGET: &str = "example.target";
    match example.get("target") {
        None | Some(Value::Null) => {}
        Some(Value::Array(_)) => return row.label(&format!("{TARGET}.0"), &stripped(names)),
        Some(_) => return row.label(TARGET, &stripped(names)),
    }
    let mut best = (0, f64::NEG_INFINITY);
    for (index, name) in names.iter().enumerate() {
        // Not `Row::get`, which would take a dot in a choice for the way into another object.
        let score = example.get("target_scores").and_then(|scores| scores.get(name)).unwrap_or(&Value::Null);
        let score = score.as_f64().ok_or_else(|| wrong_type("target_scores", "a number for each choice", score))?;
        if score > best.1 {
            best = (index, score);
        }
    }
    Ok(best.0)
}

fn stripped<'a>(names: &[&'a str]) -> Vec<&'a str> {
    names.iter().map(|name| strip(name)).collect()
}
