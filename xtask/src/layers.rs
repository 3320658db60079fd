//! Keeps the house in order: crates' arrows against the layer table of `docs/ARCHITECTURE.md`, file sizes against
//! the style, purity of the pure crates.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::sh::{cargo_command, root};

/// Longest source file, lines.
const MAX_FILE_LINES: usize = 600;
/// Layers whose crates may not use each other: they meet in traits below.
const NO_SIDEWAYS: [u32; 3] = [3, 5, 7];
/// Binaries' own library for making clusters: the one sideways arrow of layer 7.
const SHARED_TOOL: &str = "bench-lab";
/// No effects in these, and none of the words that would bring one.
const PURE: [&str; 11] = [
    "ebpf-abi",
    "ebpf-packet",
    "dataplane-model",
    "dataplane-plan",
    "control-model",
    "control-store",
    "control-allocator",
    "control-orchestrator",
    "control-scheduler",
    "bench-whoami",
    "control-ca",
];
const IMPURE_WORDS: [&str; 7] = [
    "std::net::TcpStream",
    "SystemTime::now",
    "Instant::now",
    "std::thread",
    "HashMap",
    "HashSet",
    "std::env::var",
];

/// Checks everything; the error lists all that is wrong.
pub fn check() -> Result<()> {
    let layers = layer_table(&fs::read_to_string(root().join("docs/ARCHITECTURE.md"))?)?;
    let arrows = arrows()?;
    let mut wrong = arrow_faults(&layers, &arrows);
    for file in sources(root())? {
        wrong.extend(file_faults(&file)?);
    }
    wrong.extend(dependency_faults(
        &fs::read_to_string(root().join("Cargo.toml"))?,
        &fs::read_to_string(root().join("docs/adr/0002-dependencies.md"))?,
    ));
    if !wrong.is_empty() {
        bail!("the house is out of order:\n  {}", wrong.join("\n  "));
    }
    println!("{} crates in {} layers, arrows point down only", arrows.len(), 8);
    Ok(())
}

/// Crate → layer, from the table's rows `| 4 effects | `a`, `b` | … |`. `x-*` stands for all crates with that prefix.
fn layer_table(page: &str) -> Result<BTreeMap<String, u32>> {
    let mut layers = BTreeMap::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Some(layer) = cells.get(1).and_then(|c| c.split(' ').next()).and_then(|n| n.parse().ok()) else {
            continue;
        };
        for name in cells[2].split('`').skip(1).step_by(2) {
            layers.insert(name.to_owned(), layer);
        }
    }
    ensure!(layers.len() > 8, "docs/ARCHITECTURE.md has no layer table");
    Ok(layers)
}

fn layer_of(layers: &BTreeMap<String, u32>, name: &str) -> Option<u32> {
    layers.get(name).copied().or_else(|| {
        let mut patterns = layers.iter().filter_map(|(p, layer)| Some((p.strip_suffix('*')?, *layer)));
        patterns.find(|(prefix, _)| name.starts_with(prefix)).map(|(_, layer)| layer)
    })
}

/// Our crates and those of ours that each uses outside of its tests.
fn arrows() -> Result<BTreeMap<String, Vec<String>>> {
    let output = cargo_command().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let name = |v: &Value| v["name"].as_str().unwrap_or_default().to_owned();
    let ours: Vec<String> = packages.iter().map(name).collect();
    let uses = |package: &Value| {
        let deps = package["dependencies"].as_array().into_iter().flatten();
        deps.filter(|d| d["kind"].is_null()).map(name).filter(|n| ours.contains(n)).collect()
    };
    Ok(packages.iter().map(|p| (name(p), uses(p))).collect())
}

fn arrow_faults(layers: &BTreeMap<String, u32>, arrows: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    for (from, uses) in arrows {
        let Some(from_layer) = layer_of(layers, from) else {
            faults.push(format!("{from} stands in no layer of docs/ARCHITECTURE.md"));
            continue;
        };
        for to in uses {
            let Some(to_layer) = layer_of(layers, to) else { continue };
            let sideways = from_layer == to_layer;
            let allowed_sideways = !NO_SIDEWAYS.contains(&from_layer) || to == SHARED_TOOL;
            if to_layer > from_layer || (sideways && !allowed_sideways) {
                faults.push(format!("{from} (layer {from_layer}) must not use {to} (layer {to_layer})"));
            }
            if from.starts_with("dataplane-") && to.starts_with("control-") {
                faults.push(format!("{from}: the data plane never depends on control"));
            }
            if from.starts_with("ebpf-") && !to.starts_with("ebpf-") {
                faults.push(format!("{from}: ebpf depends on nothing else of ours"));
            }
        }
    }
    faults
}

/// Every dependency of the workspace table has its reason in the decision record, and no reason is without one.
fn dependency_faults(manifest: &str, record: &str) -> Vec<String> {
    let table = manifest.split("[workspace.dependencies]").nth(1).unwrap_or_default();
    let table = table.split("\n[").next().unwrap_or_default();
    let rows =
        table.lines().filter(|l| !l.contains("path = ")).filter_map(|l| Some(l.split_once(" = ")?.0.trim()));
    let wanted: BTreeSet<&str> = rows.collect();
    let given: BTreeSet<&str> =
        record.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
    let missing = wanted
        .difference(&given)
        .map(|name| format!("docs/adr/0002-dependencies.md gives no reason for {name}"));
    let stale = given
        .difference(&wanted)
        .map(|name| format!("docs/adr/0002-dependencies.md explains {name}, which is gone"));
    missing.chain(stale).collect()
}

fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let output = std::process::Command::new("git").args(["ls-files", "*.rs"]).current_dir(root).output()?;
    let files = String::from_utf8(output.stdout)?;
    Ok(files.lines().map(|f| root.join(f)).filter(|f| f.exists()).collect())
}

fn file_faults(file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file)?;
    let shown = file.strip_prefix(root()).unwrap_or(file).display().to_string();
    let mut faults = Vec::new();
    let n_lines = text.lines().count();
    if n_lines > MAX_FILE_LINES {
        faults.push(format!("{shown} has {n_lines} lines; {MAX_FILE_LINES} is the end"));
    }
    let pure = PURE.iter().any(|name| shown.starts_with(&format!("{}/src/", name.replacen('-', "/", 1))));
    let is_test = shown.contains("tests") || shown.contains("/testing");
    if pure && !is_test && !shown.starts_with("bench/") {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let words = IMPURE_WORDS.iter().filter(|w| code.contains(*w));
        faults.extend(words.map(|w| format!("{shown} is of a pure crate and says {w}")));
        if shown.ends_with("src/lib.rs")
            && !text.contains("#![forbid(unsafe_code)]")
            && !shown.starts_with("ebpf/abi")
        {
            faults.push(format!("{shown} lacks #![forbid(unsafe_code)]"));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> BTreeMap<String, u32> {
        [("low", 1), ("mid", 3), ("mid2", 3), ("dataplane-x", 4), ("control-x", 2), ("top-*", 7)]
            .map(|(n, l)| (n.to_owned(), l))
            .into()
    }

    fn faults(from: &str, to: &str) -> usize {
        arrow_faults(&layers(), &BTreeMap::from([(from.to_owned(), vec![to.to_owned()])])).len()
    }

    #[test]
    fn arrows_down_are_fine_and_others_are_not() {
        assert_eq!(faults("mid", "low"), 0);
        assert_eq!(faults("top-a", "mid"), 0);
        assert_eq!(faults("low", "mid"), 1);
        assert_eq!(faults("mid", "mid2"), 1);
        assert_eq!(faults("dataplane-x", "control-x"), 1);
        assert_eq!(faults("stranger", "low"), 1);
    }

    #[test]
    fn every_dependency_needs_its_reason() {
        let manifest =
            "[workspace.dependencies]\nours = { path = \"x\" }\ntokio = \"1\"\n\n[profile.dev]\nx = 1\n";
        assert!(dependency_faults(manifest, "| `tokio` | runtime |").is_empty());
        assert_eq!(dependency_faults(manifest, "").len(), 1);
        assert_eq!(dependency_faults(manifest, "| `tokio` | runtime |\n| `gone` | x |").len(), 1);
    }

    #[test]
    fn the_table_is_read_from_the_page() {
        let rows: Vec<String> = (0..8).map(|n| format!("| {n} name | `a{n}`, `b{n}` | x |")).collect();
        let table = layer_table(&rows.join("\n")).unwrap();
        assert_eq!(table["a0"], 0);
        assert_eq!(table["b7"], 7);
        assert!(layer_table("no table").is_err());
    }
}
