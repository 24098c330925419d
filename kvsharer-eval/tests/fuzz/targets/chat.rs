//! Chat templates: programs of strangers.

use super::{file, fixture, read, told};
use crate::driver::{Seed, Target};
use kvsharer_models::chat::{ChatTemplate, Message};
use serde_json::{Map, Value};

pub(crate) fn templates() -> Target {
    let golden: Value = serde_json::from_slice(&read(&fixture("chat_templates.json"))).expect("JSON");
    let text = |entry: &Value, field: &str| entry[field].as_str().expect("a text").to_owned();
    let seed =
        |entry: &Value| Seed::new(&text(entry, "name").replace('/', "-"), [file("template", text(entry, "template"))]);
    Target {
        name: "chat-templates",
        seeds: golden["templates"].as_array().expect("a list").iter().map(seed).collect(),
        judge: |folder, _| {
            let template = std::fs::read_to_string(folder.join("template")).map_err(told)?;
            let special = Map::from_iter([("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]);
            let template = ChatTemplate::new(&template, special).map_err(told)?;
            let messages = [
                Message::new("system", "Be brief."),
                Message::new("user", " {{ 1 }} é\n<|im_end|>"),
                Message::new("assistant", "<think>\nno\n</think>\n\nYes."),
                Message::new("user", ""),
            ];
            // Some take no system prompt.
            let render = |messages| template.render(messages, true, &Map::new()).map(drop);
            render(&messages).or_else(|_| render(&messages[1..])).map_err(told)
        },
        // What the sandbox allows: 64 bytes for each of its steps, and what a text doubles by when it grows.
        memory: (64, 640 << 20),
    }
}
