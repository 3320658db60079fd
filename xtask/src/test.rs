//! `cargo xtask test`: what every change must pass, in tiers.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bench_lab::{leftovers, wait_until};

use crate::artifacts::{Profile, environment, programs};
use crate::sh::{cargo, cargo_command, root, show};
use crate::steps::Steps;
use crate::{checklist, deny, ebpf, guest, image, layers, setup};

/// Which tiers to run.
pub struct Options {
    pub long: bool,
    pub vm: bool,
    pub only: Option<String>,
}

/// Longest time for processes that were told to end.
const ENDING_LIMIT: Duration = Duration::from_secs(15);
/// Everything but the BPF programs, which are compiled for another target.
const HOST_CRATES: [&str; 3] = ["--workspace", "--exclude", "ebpf-progs"];

/// Runs the tiers; leaves nothing behind, or says what it left.
pub fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::new(options.only.clone());
    steps.step("set-up", || setup::run(setup::Scope::Test))?;
    let before = leftovers::snapshot()?;
    lint_steps(&mut steps)?;
    steps.step("BPF object agrees with its source", ebpf::check)?;
    steps.step("unit, packet and namespace tests", || {
        let mut test = cargo_command();
        // Every failing program is seen, not the first.
        test.args(["test", "--quiet", "--no-fail-fast"]).args(HOST_CRATES);
        if options.long {
            test.env("MESH_TEST_LONG", "1");
        }
        show(&mut test)
    })?;
    steps.step("cluster tests", || cluster_tests(options.long))?;
    if options.vm {
        steps.step("guest: Debian 12's kernel", guest_tests)?;
    }
    steps.step("nothing left behind", || {
        // What was told to end may take a moment to.
        let mut left = Vec::new();
        let gone = wait_until("the last processes to end", ENDING_LIMIT, || {
            left = leftovers::snapshot()?.difference(&before).cloned().collect();
            Ok(left.is_empty().then_some(()))
        });
        match gone {
            Ok(_) => Ok(()),
            Err(_) => bail!("the tests left behind:\n  {}", left.join("\n  ")),
        }
    })?;
    steps.finish();
    Ok(())
}

/// Format, lints, layers, licences.
pub fn lint() -> Result<()> {
    setup::run(setup::Scope::Test)?;
    let mut steps = Steps::default();
    lint_steps(&mut steps)?;
    steps.finish();
    Ok(())
}

fn lint_steps(steps: &mut Steps) -> Result<()> {
    steps.step("format", || cargo(&["fmt", "--all", "--check"]))?;
    steps.step("layers, purity and sizes", layers::check)?;
    steps.step("checklist of features", checklist::check)?;
    steps.step("licences, bans and sources", deny::check)?;
    steps.step("clippy", || {
        let mut clippy = vec!["clippy", "--quiet"];
        clippy.extend(HOST_CRATES);
        clippy.extend(["--all-targets", "--", "-D", "warnings"]);
        cargo(&clippy)?;
        // It is none of all targets, for `cargo test` leaves it out.
        cargo(&["clippy", "--quiet", "-p", "bench-lab", "--test", "cluster", "--", "-D", "warnings"])
    })
}

fn cluster_tests(long: bool) -> Result<()> {
    let mut test = cluster_command()?;
    if long {
        test.env("MESH_TEST_LONG", "1");
    }
    show(&mut test)
}

/// The scenario of the voting app, with a browser that looks at it.
pub fn pictures() -> Result<()> {
    setup::run(setup::Scope::Pictures)?;
    let pictures = root().join("docs/pictures");
    std::fs::create_dir_all(&pictures)?;
    show(cluster_command()?.env("MESH_SCENARIO", "the voting app").env("MESH_PICTURES", pictures))
}

/// The cluster's scenarios, with all that they run built.
fn cluster_command() -> Result<Command> {
    let programs = programs(Profile::Dev)?;
    image::of_test_stacks()?;
    let mut test = cargo_command();
    test.args([
        "test",
        "--quiet",
        "-p",
        "bench-lab",
        "--test",
        "cluster",
        "--",
        "--test-threads",
        "1",
        "--nocapture",
    ]);
    test.envs(environment(&programs));
    Ok(test)
}

/// The data plane's kernel tests and a cluster on Debian 12's own kernel: clsact instead of TCX, cgroup v2.
fn guest_tests() -> Result<()> {
    setup::run(setup::Scope::Guest)?;
    let programs = programs(Profile::Release)?;
    let guest = guest::Guest::build()?;
    let mut files = vec![programs.meshd.clone(), programs.meshctl.clone(), programs.whoami_image.clone()];
    files.extend(image::of_test_stacks()?);
    files.push(programs.whoami_image.with_file_name("whoami-rootfs").join("whoami"));
    let suites = test_programs("dataplane-kernel", &["--tests"])?;
    // By its name: cargo leaves it out of all tests.
    let cluster = test_programs("bench-lab", &["--test", "cluster"])?.pop();
    let cluster = cluster.context("cargo built no cluster test")?;
    for file in files.iter().chain(&suites).chain([&cluster]) {
        std::fs::copy(file, guest.share().join(file_name(file)))?;
    }
    let suites: Vec<String> = suites.iter().map(|p| format!("./{} --test-threads=1", file_name(p))).collect();
    let suites = suites.join("\n");
    let script = format!(
        "set -e\ncd /share\nexport MESH_NEEDS_SCTP=1\nmkdir -p /tmp/whoami-rootfs\ncp whoami /tmp/whoami-rootfs/\ncp *.tar meshd meshctl /tmp/\n\
         {suites}\nexport MESH_MESHD=/tmp/meshd MESH_MESHCTL=/tmp/meshctl MESH_WHOAMI_IMAGE=/tmp/whoami.tar\n./{}\n",
        file_name(&cluster)
    );
    guest.run(&script)
}

/// Test programs of a package, built; `which` is how cargo is told.
pub fn test_programs(package: &str, which: &[&str]) -> Result<Vec<std::path::PathBuf>> {
    let output = cargo_command()
        .args(["test", "--quiet", "--release", "--no-run", "--message-format", "json", "-p", package])
        .args(which)
        .output()?;
    ensure!(output.status.success(), "cargo can't build the tests of {package}");
    let text = String::from_utf8(output.stdout)?;
    let programs = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"].as_bool()?;
        message["executable"].as_str().filter(|_| is_test).map(Into::into)
    });
    Ok(programs.collect())
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
