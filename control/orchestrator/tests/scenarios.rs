//! Scenarios as text: commands, `----`, output. `REWRITE_SCENARIOS=1` writes what comes out into the files.

mod cluster;
mod language;

use std::fs;
use std::path::Path;

#[test]
fn scenarios() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(dir).expect("scenarios").map(|e| e.expect("entry").path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        let result = language::play(&text);
        if result != text {
            if std::env::var_os("REWRITE_SCENARIOS").is_some() {
                fs::write(&file, &result).expect("writable");
            } else {
                wrong.push(format!("{}:\n{}", file.display(), difference(&text, &result)));
            }
        }
    }
    assert!(wrong.is_empty(), "rerun with REWRITE_SCENARIOS=1 and look at the diff:\n{}", wrong.join("\n"));
}

/// The lines around the first one that differs.
fn difference(expected: &str, found: &str) -> String {
    let (expected, found): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let at = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let around = |lines: &[&str]| {
        lines.iter().skip(at.saturating_sub(8)).take(24).copied().collect::<Vec<_>>().join("\n    ")
    };
    format!("line {}: expected\n    {}\nfound\n    {}", at + 1, around(&expected), around(&found))
}
