//! Which files of a model's repository are needed.

use super::reference::is_path;
use super::{HubError, HubReference};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Small files, none of which every model has.
const SMALL: &[&str] =
    &["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// The only file of weights.
pub(super) const SINGLE: &str = "model.safetensors";

/// What names the files of weights.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Files that are needed of those that there are, weights last: without them a folder is not complete.
pub(super) fn needed(reference: &HubReference, names: &[String]) -> Result<Vec<String>, HubError> {
    let has = |name: &str| names.iter().any(|other| other == name);
    if !has("config.json") && !names.iter().any(|name| name.ends_with(".gguf")) {
        let hint = ": it is no model in the format of transformers".into();
        return Err(HubError::NoFile { reference: reference.to_string(), file: "config.json".into(), hint });
    }
    let weights = [SINGLE, INDEX].into_iter().find(|name| has(name)).ok_or_else(|| no_weights(reference, names))?;
    let small = SMALL.iter().copied().filter(|name| has(name));
    let named =
        |name: &String| name.starts_with("additional_chat_templates/") && name.ends_with(".jinja") && is_path(name);
    let small = small.map(str::to_owned).chain(names.iter().filter(|name| named(name)).cloned());
    Ok(small.chain([weights.to_owned()]).collect())
}

fn no_weights(reference: &HubReference, names: &[String]) -> HubError {
    let with = |ending: &str| names.iter().find(|name| name.ends_with(ending));
    let hint = match (with(".gguf"), with(".bin")) {
        (Some(gguf), _) => format!(", but GGUF files: choose one, such as hf:{}/{gguf}", reference.repository),
        (None, Some(_)) => ", but PyTorch's pickled ones, which are not read: look for a converted repository".into(),
        (None, None) => ": choose another repository".into(),
    };
    HubError::NoWeights { reference: reference.to_string(), hint }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names, if it is one.
pub(super) fn shards(index: &[u8]) -> Option<BTreeSet<String>> {
    let index: Index = serde_json::from_slice(index).ok()?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    shards.iter().all(|shard| is_path(shard)).then_some(shards)
}

#[cfg(test)]
mod tests {
    use super::super::RepositoryKind;
    use super::*;

    #[test]
    fn only_what_a_model_needs_is_chosen() {
        let reference = HubReference::parse(RepositoryKind::Model, "hf:org/name").unwrap();
        let choose =
            |names: &[&str]| needed(&reference, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let all = ["README.md", "model.safetensors.index.json", "pytorch_model.bin", "config.json", "tokenizer.json"];
        assert_eq!(choose(&all).unwrap(), ["config.json", "tokenizer.json", INDEX]);
        assert_eq!(choose(&["config.json", INDEX, SINGLE]).unwrap(), ["config.json", SINGLE]);
        for (names, expected) in [
            (&["a.txt"][..], "no file config.json"),
            (&["config.json", "a.bin"], "pickled"),
            (&["a-q4.gguf"], "hf:org/name/a-q4.gguf"),
            (&["config.json"], "choose another"),
        ] {
            let error = choose(names).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_index_names_its_shards_and_nothing_outside() {
        let index = |shard: &str| format!(r#"{{"weight_map": {{"a": "{shard}", "b": "x"}}}}"#);
        assert_eq!(shards(index("y").as_bytes()).unwrap().len(), 2);
        assert!(shards(index("../y").as_bytes()).is_none() && shards(b"[]").is_none());
    }
}
