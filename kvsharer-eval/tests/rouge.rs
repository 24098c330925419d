//! ROUGE against google-research's `rouge_score`; the fixture lies beside the script that made it.

use kvsharer_eval::metrics::rouge;
use serde_json::Value;

#[test]
fn equals_rouge_score() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rouge.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let found = rouge(text("prediction"), text("reference"));
        for (key, found) in [("one", found.one), ("two", found.two), ("l", found.l)] {
            let expected = case[key].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-9, "{key} is {found} instead of {expected}: {case}");
        }
    }
}
