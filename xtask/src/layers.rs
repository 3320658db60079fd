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
/// Crates and parts of crates without effects: none of the words that would bring one stands in them.
const PURE: [&str; 23] = [
    "ebpf/abi/src/",
    "ebpf/packet/src/",
    "dataplane/model/src/",
    "dataplane/plan/src/",
    "control/model/src/",
    "control/store/src/",
    "control/allocator/src/",
    "control/orchestrator/src/",
    "control/scheduler/src/",
    "control/ca/src/",
    "control/gossip/src/core/",
    "control/gossip/src/seal/",
    "control/agent/src/desk.rs",
    "control/agent/src/local.rs",
    "control/agent/src/machine/",
    "control/agent/src/said.rs",
    "control/agent/src/set.rs",
    "control/agent/src/view.rs",
    "control/agent/src/view/",
    "control/manager/src/leader/rounds.rs",
    "control/runtime/src/standalone/names.rs",
    "control/runtime/src/standalone/ports.rs",
    "control/runtime/src/standalone/restart.rs",
];
const IMPURE_WORDS: [&str; 17] = [
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "SystemTime::now",
    "Instant::now",
    "std::thread",
    "std::env",
    "std::fs",
    "std::process",
    "HashMap",
    "HashSet",
    "RandomState",
    "rand::",
    "tokio::",
];
/// In which the seam tells what it holds: it starts nothing, and nothing waits in it.
const PURE_CHANNEL: &str = "tokio::sync::watch";

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
            let Some(to_layer) = layer_of(layers, to) else {
                faults.push(format!("{from} uses {to}, which stands in no layer of docs/ARCHITECTURE.md"));
                continue;
            };
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
    faults.extend(purity_faults(&shown, &text));
    Ok(faults)
}

/// What of an effect a file of a pure part says outside of its tests.
fn purity_faults(shown: &str, text: &str) -> Vec<String> {
    let is_test = shown.split('/').any(|part| part == "tests" || part == "testing")
        || ["tests.rs", "testing.rs"].iter().any(|end| shown.ends_with(end));
    if is_test || !PURE.iter().any(|part| shown.starts_with(part)) {
        return Vec::new();
    }
    let code = without_tests(text).replace(PURE_CHANNEL, "");
    let words = IMPURE_WORDS.iter().filter(|word| code.contains(**word));
    let mut faults: Vec<String> =
        words.map(|word| format!("{shown} has no effects and says {word}")).collect();
    let is_unsafe = !text.contains("#![forbid(unsafe_code)]") && !shown.starts_with("ebpf/abi");
    if shown.ends_with("src/lib.rs") && is_unsafe {
        faults.push(format!("{shown} lacks #![forbid(unsafe_code)]"));
    }
    faults
}

/// Leaves out the module of tests, from its first line to the brace that ends it; `mod tests;` ends nothing.
fn without_tests(text: &str) -> String {
    let Some((before, tests)) = text.split_once("#[cfg(test)]\nmod tests {") else { return text.to_owned() };
    let after = tests.split_once("\n}\n").map_or("", |(_, after)| after);
    format!("{before}{after}")
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
        assert_eq!(faults("mid", "stranger"), 1);
    }

    #[test]
    fn pure_files_are_looked_at_up_to_their_tests_and_behind_them() {
        let faults = |text: &str| purity_faults("control/orchestrator/src/drain.rs", text).len();
        let impure = "fn now() {\n    std::time::Instant::now()\n}\n";
        let tests = format!("#[cfg(test)]\nmod tests {{\n    {impure}}}\n");
        assert_eq!(faults(impure), 1);
        assert_eq!(faults(&format!("#[cfg(test)]\nmod tests;\n\n{impure}")), 1, "declared on top");
        assert_eq!(faults(&format!("#[cfg(test)]\nfn helper() {{}}\n\n{impure}")), 1);
        assert_eq!(faults(&tests), 0, "tests may look at the clock");
        assert_eq!(faults(&format!("{tests}\n{impure}")), 1, "behind the tests");
        for text in ["rand::random()", "std::fs::read(x)", "tokio::spawn(x)", "UdpSocket::bind(x)"] {
            assert_eq!(faults(text), 1, "{text}");
        }
        assert_eq!(faults("fn watch() -> tokio::sync::watch::Receiver<Report>;"), 0);
        assert!(purity_faults("control/orchestrator/src/drain/tests.rs", impure).is_empty());
        assert!(purity_faults("control/manager/src/lib.rs", impure).is_empty());
        assert_eq!(purity_faults("control/store/src/lib.rs", "").len(), 1, "it forbids no unsafe code");
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
