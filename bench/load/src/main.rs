//! Macro benchmarks: our paths and their peers in the same run, in turns, on the same machine. Says how fast things are
//! and never whether that is enough.
#![forbid(unsafe_code)]

mod compare;
mod dockerd;
mod image;
mod interrupt;
mod mesh;
mod netns;
mod process;
mod report;
mod sections;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use crate::compare::Plan;
use crate::mesh::LazyMesh;
use crate::report::{Machine, Report};
use crate::sections::Section;

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
    /// The DNS process that the `dns` section measures; what `meshd dns` runs
    #[command(hide = true)]
    DnsProcess { socket: PathBuf },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Quick { only, runs, seconds, out } => quick(&only, Plan { runs, seconds }, &out),
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

/// Runs the sections one after the other. A section that can't be measured says why in the table.
fn quick(only: &[Section], plan: Plan, out: &std::path::Path) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "benchmarks make network namespaces: run this as root");
    let wanted = if only.is_empty() { Section::value_variants() } else { only };
    let mut report = Report { machine: Machine::here()?, plan, comparisons: Vec::new() };
    interrupt::watch()?;
    let mesh = LazyMesh::default();
    for section in wanted {
        if interrupt::check().is_err() {
            break;
        }
        eprintln!("== {section:?}");
        report.comparisons.extend(section.measure(plan, &mesh));
    }
    drop(mesh);
    report.write(out).with_context(|| format!("can't write to {}", out.display()))?;
    print!("{}", report.markdown());
    interrupt::check()
}
