//! Chat templates against Hugging Face transformers; the fixture lies beside the script that made it.

use kvsharer_models::chat::{ChatError, ChatTemplate, Message};
use serde_json::{Map, Value};
use std::path::PathBuf;

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().expect("a text")
}

/// KVSHARER_CHAT_FIXTURES names another file, made by the same script from other templates.
#[test]
fn templates_render_as_transformers_renders_them() {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat_templates.json");
    let path = std::env::var_os("KVSHARER_CHAT_FIXTURES").map_or(own, PathBuf::from);
    let golden: Value = serde_json::from_slice(&std::fs::read(path).expect("the fixture")).expect("JSON");
    let templates = golden["templates"].as_array().expect("a list");
    assert!(!templates.is_empty());
    let mut wrong = Vec::new();
    for entry in templates {
        let template = ChatTemplate::new(text(entry, "template"), object(&golden["special"]))
            .unwrap_or_else(|error| panic!("{}: {error}", entry["name"]));
        for case in entry["cases"].as_array().expect("a list") {
            let conversation = golden["conversations"][text(case, "conversation")].as_array().expect("a list");
            let messages: Vec<Message> = conversation
                .iter()
                .map(|message| Message::new(text(message, "role"), text(message, "content")))
                .collect();
            let rendered = template.render(&messages, case["answer"] == true, &object(&case["variables"]));
            let place = format!("{} with {}", entry["name"], case["conversation"]);
            let agree = match (&rendered, case.get("error")) {
                (Ok(found), None) => found == text(case, "text"),
                (Err(ChatError::Refused(found)), Some(error)) => found == error,
                // The engines word their own errors differently.
                (Err(ChatError::Broken { .. }), Some(_)) => true,
                _ => false,
            };
            if !agree {
                wrong.push(format!(
                    "{place}: {rendered:?}\n  transformers: {}",
                    case.get("error").unwrap_or(&case["text"])
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
