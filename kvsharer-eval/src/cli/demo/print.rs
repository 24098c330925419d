//! What the demo prints.

use super::super::output::{human_bytes, table};
use super::{DECODE_PROMPT, DemoArgs, PROMPT, Row};

/// Ratios of perplexities above which the verdict speaks of some loss, and of a loss.
const SOME_LOSS: f64 = 1.01;
const LOSS: f64 = 1.1;

pub(super) fn draw_table(args: &DemoArgs, rows: &[Row]) -> String {
    let full = rows.first().map_or(1, |row| row.kv_bytes) as f64;
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.cache.clone(),
                human_bytes(row.kv_bytes),
                format!("{:.1} %", 100.0 * row.kv_bytes as f64 / full),
                format!("{:.2}", row.perplexity),
                format!("x{:.2}", row.perplexity_ratio),
                format!("{:.1}", row.decode.tokens_per_second.median),
            ]
        })
        .collect();
    let header =
        ["cache", &format!("KV at {} tokens", args.tokens), "of full", "perplexity", "of full", "decode tokens/s"];
    let predicted = rows.first().map_or(0, |row| row.predicted_tokens);
    format!(
        "{}perplexity: {predicted} tokens in windows of {}, {} a pass, so that evictions count; decode: median at {} tokens\n",
        table(&header, &lines, false),
        args.tokens,
        args.pass(),
        DECODE_PROMPT.min(args.eval_tokens as usize)
    )
}

/// Says in words what was lost.
pub(super) fn verdict(rows: &[Row]) -> String {
    let Some(full) = rows.first() else {
        return String::new();
    };
    let line = |row: &Row| {
        let saved = 100.0 * (1.0 - row.kv_bytes as f64 / full.kv_bytes as f64);
        let what = match row.perplexity_ratio {
            ratio if ratio > LOSS => "quality is LOST",
            ratio if ratio > SOME_LOSS => "some quality is lost",
            _ => "no loss of quality seen",
        };
        format!(
            "{}: saves {saved:.1} % of the KV bytes; {what}: perplexity {:.2} instead of {:.2} (x{:.2})\n",
            row.cache, row.perplexity, full.perplexity, row.perplexity_ratio
        )
    };
    let shared = rows.iter().skip(1).filter(|row| row.policies.iter().all(|policy| policy.starts_with("sharing")));
    let (best, worst) = (shared.clone().next(), shared.clone().next_back());
    let meaning = best.zip(worst).map_or(String::new(), |(best, worst)| {
        format!(
            "At about the same bytes `{}` multiplies the perplexity by {:.2} and `{}` by {:.2}: on this model it matters \
             which layers share.\n",
            best.cache, best.perplexity_ratio, worst.cache, worst.perplexity_ratio
        )
    });
    rows[1..].iter().map(line).chain([meaning]).collect()
}

pub(super) fn draw_texts(rows: &[Row]) -> String {
    let continuations =
        rows.iter().take(4).map(|row| format!("  {}:{}\n", row.cache, row.continuation.replace('\n', "\n    ")));
    format!("\"{PROMPT}\" continued\n{}", continuations.collect::<String>())
}
