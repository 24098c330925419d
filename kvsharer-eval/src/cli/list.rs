//! `kvsharer models`, `kvsharer policies` and `kvsharer tasks`.

use super::Global;
use super::error::CliError;
use super::output::{emit, emit_json, table};
use kvsharer_eval::OTHER_TASKS;
use kvsharer_eval::tasks::Rules;
use kvsharer_models::{catalogue, family::families, fetched, random_shapes};
use serde_json::json;

pub(super) fn models(global: &Global) -> Result<(), CliError> {
    let mut named = Vec::new();
    for entry in catalogue() {
        named.push((entry, fetched(entry)?));
    }
    let architectures: Vec<&str> = families().iter().flat_map(|family| family.hugging_face()).copied().collect();
    let gguf: Vec<&str> = families().iter().flat_map(|family| family.gguf()).copied().collect();
    if global.json {
        let fetchable: Vec<_> = named
            .iter()
            .map(|(entry, path)| json!({ "name": entry.name, "summary": entry.summary, "license": entry.license, "path": path }))
            .collect();
        let random: Vec<String> = random_shapes().map(|shape| format!("random:{shape}")).collect();
        return emit_json(
            &json!({ "fetchable": fetchable, "random": random, "hugging_face": architectures, "gguf": gguf }),
        );
    }
    let mut rows: Vec<Vec<String>> = named
        .iter()
        .map(|(entry, path)| {
            let state = path.as_ref().map_or_else(|| "not fetched".into(), |path| path.display().to_string());
            vec![entry.name.into(), format!("{}; {}", entry.summary, entry.license), state]
        })
        .collect();
    rows.extend(
        random_shapes()
            .map(|shape| vec![format!("random:{shape}"), "random weights, for speed and memory".into(), String::new()]),
    );
    rows.push(vec![
        "hf:ORG/NAME[@REVISION]".into(),
        "Hugging Face hub: a folder as below; hf:ORG/NAME/FILE.gguf: one file".into(),
        String::new(),
    ]);
    rows.push(vec![
        "a folder".into(),
        format!("Hugging Face: config.json + safetensors, {}", architectures.join(", ")),
        String::new(),
    ]);
    rows.push(vec!["a .gguf file".into(), format!("llama.cpp: architecture {}", gguf.join(", ")), String::new()]);
    emit(&table(&["model", "what it is", "where"], &rows, true))
}

pub(super) fn policies(global: &Global) -> Result<(), CliError> {
    let entries = kvsharer_compress::policies();
    if global.json {
        let rows: Vec<_> = entries
            .iter()
            .map(|entry| json!({ "name": entry.name, "summary": entry.summary, "options": entry.options, "common": entry.scored, "source": entry.source }))
            .collect();
        return emit_json(&rows);
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let common = if entry.scored { "; common options" } else { "" };
            let options = format!("{}{common}", entry.options);
            vec![entry.name.into(), entry.summary.into(), options, entry.source.into()]
        })
        .collect();
    let common = kvsharer_compress::common_options();
    emit(&format!(
        "{}common options: {common}\namounts of tokens: {}\n",
        table(&["policy", "what it does", "options and defaults", "source"], &rows, true),
        kvsharer_compress::Amounts::GRAMMAR
    ))
}

pub(super) fn tasks(global: &Global) -> Result<(), CliError> {
    let entries = kvsharer_eval::tasks::tasks();
    if global.json {
        let rules = |rules: &Option<Rules>| {
            let rules = rules.as_ref()?;
            Some(json!({ "source": rules.source, "shots": rules.shots, "metrics": rules.metrics }))
        };
        let benchmarks = entries.iter().map(|entry| {
            let (lm_eval, opencompass) = (rules(&entry.lm_eval), rules(&entry.opencompass));
            json!({ "name": entry.name, "summary": entry.summary, "files": entry.files, "lm-eval": lm_eval, "opencompass": opencompass })
        });
        let others = OTHER_TASKS
            .iter()
            .map(|(name, files, summary)| json!({ "name": name, "summary": summary, "files": files }));
        return emit_json(&benchmarks.chain(others).collect::<Vec<_>>());
    }
    let mut rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let protocols: Vec<&str> = entry.protocols().map(|protocol| protocol.name()).collect();
            vec![entry.name.into(), entry.summary.into(), protocols.join(", "), entry.files.into()]
        })
        .collect();
    rows.extend(OTHER_TASKS.iter().map(|(name, files, summary)| {
        let (protocol, summary) = summary.split_once(": ").unwrap_or(("greedy", summary));
        vec![(*name).into(), summary.into(), protocol.into(), (*files).into()]
    }));
    emit(&table(&["task", "what it measures", "protocols", "files"], &rows, true))
}
