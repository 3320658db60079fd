//! Macro benchmarks: our paths and their peers in the same run, in turns, on the same machine. Says how fast things are
//! and never whether that is enough.
#![deny(unsafe_code)]

mod compare;
mod crowd;
mod dockerd;
mod image;
mod interrupt;
mod managers;
mod mesh;
mod netns;
mod pair;
mod process;
mod report;
mod sections;
mod synthetic;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use crate::compare::{Comparison, Plan};
use crate::mesh::LazyMesh;
use crate::report::{Machine, Report};
use crate::sections::{ControlSection, DataplaneSection, Section};

/// Measures the mesh and its peers, in turns.
#[derive(Debug, Parser)]
#[command(name = "bench-load")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A first table in a few minutes
    Quick {
        /// Only these sections
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<Section>,
        /// Samples per row; the table has their median
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        runs: u32,
        /// Seconds per sample of a rate
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// Where the JSON file and the Markdown table go
        #[arg(long, default_value = "target/bench")]
        out: PathBuf,
    },
    /// The data plane by itself, with the goals that it has
    Dataplane {
        /// Only these sections
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<DataplaneSection>,
        /// Samples per row; the table has their median
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        runs: u32,
        /// Seconds per sample of a rate
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// Where the JSON file and the Markdown table go
        #[arg(long, default_value = "target/bench", conflicts_with = "docs")]
        out: PathBuf,
        /// They go to the documentation: `docs/bench-dataplane.md` and `.json`
        #[arg(long)]
        docs: bool,
    },
    /// The control plane beside dockerd's and etcd, with the goals that it has
    Control {
        /// Only these sections
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<ControlSection>,
        /// Samples per row; the table has their median. Slow peers have fewer
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
        /// Seconds per sample of a rate
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// Where the JSON file and the Markdown table go
        #[arg(long, default_value = "target/bench", conflicts_with = "docs")]
        out: PathBuf,
        /// They go to the documentation: `docs/bench-control.md` and `.json`
        #[arg(long)]
        docs: bool,
    },
    /// HTTP beside Docker Swarm's own mesh and IPVS; for the test guest, whose kernel has IPVS
    Guest {
        /// Samples per row; the tables have their median
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        runs: u32,
        /// Seconds per sample
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// Where the JSON file and the Markdown table go
        #[arg(long, default_value = "target/bench")]
        out: PathBuf,
    },
    /// The DNS process that the `dns` section measures; what `meshd dns` runs
    #[command(hide = true)]
    DnsProcess { socket: PathBuf },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Quick { only, runs, seconds, out } => quick(&only, Plan { runs, seconds }, &out),
        Command::Dataplane { only, runs, seconds, out, docs } => {
            dataplane(&only, Plan { runs, seconds }, if docs { Path::new("docs") } else { &out })
        }
        Command::Control { only, runs, seconds, out, docs } => {
            control(&only, Plan { runs, seconds }, if docs { Path::new("docs") } else { &out })
        }
        Command::Guest { runs, seconds, out } => guest(Plan { runs, seconds }, &out),
        Command::DnsProcess { socket } => {
            dataplane_dns::run_server(&dataplane_dns::ServerOptions::new(socket)).map_err(Into::into)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn quick(only: &[Section], plan: Plan, out: &Path) -> Result<()> {
    let machine = Machine::here()?;
    let mesh = LazyMesh::default();
    let comparisons = measure(only, |section| section.measure(plan, &mesh))?;
    drop(mesh);
    finish(&Report { title: "Bench, quick form", method: "", machine, plan, comparisons }, out, "quick")
}

fn dataplane(only: &[DataplaneSection], plan: Plan, out: &Path) -> Result<()> {
    let machine = Machine::here()?;
    let comparisons = measure(only, |section| section.measure(plan))?;
    let title = "Bench of the data plane";
    finish(&Report { title, method: "", machine, plan, comparisons }, out, "bench-dataplane")
}

fn control(only: &[ControlSection], plan: Plan, out: &Path) -> Result<()> {
    let machine = Machine::here()?;
    let comparisons = measure(only, |section| section.measure(plan))?;
    let (title, method) = ("Bench of the control plane", sections::METHOD_OF_CONTROL);
    finish(&Report { title, method, machine, plan, comparisons }, out, "bench-control")
}

fn guest(plan: Plan, out: &Path) -> Result<()> {
    begin()?;
    let machine = Machine::here()?;
    let comparisons = sections::measure_beside_swarm(plan);
    let (title, method) = ("Bench beside Docker Swarm", sections::METHOD_BESIDE_SWARM);
    finish(&Report { title, method, machine, plan, comparisons }, out, "bench-guest")
}

/// Runs the sections one after the other. A section that can't be measured says why in the table.
fn measure<S: ValueEnum + Copy + std::fmt::Debug>(
    only: &[S],
    mut section: impl FnMut(S) -> Vec<Comparison>,
) -> Result<Vec<Comparison>> {
    begin()?;
    let mut comparisons = Vec::new();
    for wanted in if only.is_empty() { S::value_variants() } else { only } {
        if interrupt::check().is_err() {
            break;
        }
        eprintln!("== {wanted:?}");
        comparisons.extend(section(*wanted));
    }
    Ok(comparisons)
}

fn begin() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "benchmarks make network namespaces: run this as root");
    interrupt::watch()
}

/// Writes what was measured, also after Ctrl-C, and shows it.
fn finish(report: &Report, out: &Path, name: &str) -> Result<()> {
    report.write(out, name).with_context(|| format!("can't write to {}", out.display()))?;
    print!("{}", report.markdown());
    interrupt::check()
}
