//! `cargo xtask test`: what every change must pass, in tiers.

use anyhow::{Result, bail, ensure};
use bench_lab::leftovers;

use crate::artifacts::{Profile, environment, programs};
use crate::sh::{cargo, cargo_command, show};
use crate::steps::Steps;
use crate::{deny, ebpf, layers, setup};

/// Which tiers to run.
pub struct Options {
    pub long: bool,
    pub vm: bool,
    pub only: Option<String>,
}

/// Everything but the BPF programs, which are compiled for another target.
const HOST_CRATES: [&str; 3] = ["--workspace", "--exclude", "ebpf-progs"];

/// Runs the tiers; leaves nothing behind, or says what it left.
pub fn run(options: &Options) -> Result<()> {
    ensure!(!options.vm, "there are no suites for the virtual machine yet");
    let mut steps = Steps::new(options.only.clone());
    steps.step("set-up", || setup::run(setup::Scope::Test))?;
    let before = leftovers::snapshot()?;
    lint_steps(&mut steps)?;
    steps.step("BPF object agrees with its source", ebpf::check)?;
    steps.step("unit, packet and namespace tests", || {
        let mut test = cargo_command();
        test.args(["test", "--quiet"]).args(HOST_CRATES);
        if options.long {
            test.env("MESH_TEST_LONG", "1");
        }
        show(&mut test)
    })?;
    steps.step("cluster tests", || cluster_tests(options.long))?;
    steps.step("nothing left behind", || {
        let left: Vec<String> = leftovers::snapshot()?.difference(&before).cloned().collect();
        if !left.is_empty() {
            bail!("the tests left behind:\n  {}", left.join("\n  "));
        }
        Ok(())
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
    steps.step("licences, bans and sources", deny::check)?;
    steps.step("clippy", || {
        let mut clippy = vec!["clippy", "--quiet"];
        clippy.extend(HOST_CRATES);
        clippy.extend(["--all-targets", "--", "-D", "warnings"]);
        cargo(&clippy)
    })
}

fn cluster_tests(long: bool) -> Result<()> {
    let programs = programs(Profile::Dev)?;
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
    if long {
        test.env("MESH_TEST_LONG", "1");
    }
    show(&mut test)
}
