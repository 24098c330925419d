//! JSON as Python's `json.dumps` writes it, which is what `tojson` means in a chat template of Hugging Face.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Deepest nesting that is written.
const MAX_DEPTH: usize = 64;

/// How `json.dumps` is called.
struct Style {
    indent: Option<usize>,
    item: String,
    key: String,
    sort_keys: bool,
    ascii: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let style = Style {
        indent,
        // Where lines are broken, no space stands before the break.
        item: if indent.is_some() { ",".into() } else { ", ".into() },
        key: ": ".into(),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let style = match separators.as_deref() {
        None => style,
        Some([item, key]) => Style { item: item.clone(), key: key.clone(), ..style },
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two texts")),
    };
    let mut text = String::new();
    write(value, &style, 0, &mut text)?;
    Ok(text)
}

fn write(value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    let invalid = |what: String| Err(Error::new(ErrorKind::BadSerialization, what));
    if depth > MAX_DEPTH {
        return invalid(format!("tojson: more than {MAX_DEPTH} levels"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => string(value.as_str().unwrap_or_default(), style, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            list(('[', ']'), &items, style, depth, out, |item, out| write(item, style, depth + 1, out))?;
        }
        ValueKind::Map => {
            let mut entries = Vec::new();
            for key in value.try_iter()? {
                let spelt = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                    ValueKind::Number => number(&key),
                    ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
                    ValueKind::None => "null".to_owned(),
                    kind => return invalid(format!("tojson: a {kind} cannot be a key")),
                };
                entries.push((spelt, value.get_item(&key)?));
            }
            if style.sort_keys {
                entries.sort_by(|a, b| a.0.cmp(&b.0));
            }
            list(('{', '}'), &entries, style, depth, out, |(key, value), out| {
                string(key, style, out);
                out.push_str(&style.key);
                write(value, style, depth + 1, out)
            })?;
        }
        kind => return invalid(format!("tojson: {kind} has no JSON")),
    }
    Ok(())
}

fn list<T>(
    (open, close): (char, char),
    items: &[T],
    style: &Style,
    depth: usize,
    out: &mut String,
    mut one: impl FnMut(&T, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = style.indent.filter(|_| !items.is_empty()) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.min(64) * depth));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item);
        }
        line(depth + 1, out);
        one(item, out)?;
    }
    line(depth, out);
    out.push(close);
    Ok(())
}

fn string(text: &str, style: &Style, out: &mut String) {
    // Both write the same escapes.
    let quoted = serde_json::Value::from(text).to_string();
    if !style.ascii {
        return out.push_str(&quoted);
    }
    for c in quoted.chars() {
        match c {
            ' '..='~' => out.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| *out += &format!("\\u{unit:04x}")),
        }
    }
}

/// As Python's `repr` writes it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(number) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    match number {
        n if n.is_nan() => "NaN".into(),
        n if n.is_infinite() => if n > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        n if n == 0.0 || (1e-4..1e16).contains(&n.abs()) => {
            let plain = format!("{n}");
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        n => {
            let text = format!("{n:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, power) = exponent.strip_prefix('-').map_or(('+', exponent), |power| ('-', power));
            format!("{digits}e{sign}{power:0>2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumps(value: serde_json::Value, options: &[(&str, Value)]) -> String {
        let options: Kwargs = options.iter().map(|(key, value)| (*key, value.clone())).collect();
        tojson(&serde_json::from_value(value).unwrap(), options).unwrap()
    }

    /// What Python 3.13's `json.dumps(…, ensure_ascii=False)` gives.
    #[test]
    fn values_are_written_as_python_writes_them() {
        let value = serde_json::json!([null, true, 1, -2.5, 1.0, 1e16, 1e-5, 123456.75, "é\"\\\n\u{7}\u{7f}", [], {}]);
        assert_eq!(
            dumps(value, &[]),
            "[null, true, 1, -2.5, 1.0, 1e+16, 1e-05, 123456.75, \"é\\\"\\\\\\n\\u0007\u{7f}\", [], {}]"
        );
        let nested = serde_json::json!({"b": [1, {"a": "ü😀"}], "a": []});
        assert_eq!(
            dumps(nested.clone(), &[("indent", 2.into()), ("sort_keys", true.into())]),
            "{\n  \"a\": [],\n  \"b\": [\n    1,\n    {\n      \"a\": \"ü😀\"\n    }\n  ]\n}"
        );
        let options = [("ensure_ascii", true.into()), ("separators", Value::from(vec![",", ":"]))];
        assert_eq!(dumps(serde_json::json!({"a": ["ü😀", 2]}), &options), "{\"a\":[\"\\u00fc\\ud83d\\ude00\",2]}");
    }

    #[test]
    fn wrong_options_and_endless_nesting_are_refused() {
        let mut deep = Value::from(1);
        for _ in 0..100 {
            deep = Value::from(vec![deep]);
        }
        assert!(tojson(&deep, Kwargs::from_iter([("indent", Value::from(1))])).is_err());
        assert!(tojson(&1.into(), Kwargs::from_iter([("colour", Value::from(1))])).is_err());
        assert!(tojson(&1.into(), Kwargs::from_iter([("separators", Value::from(vec![","]))])).is_err());
    }
}
