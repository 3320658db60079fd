//! `cargo xtask …`: what a developer or a curious user does with this project, each as one command.

mod artifacts;
mod budgets;
mod checklist;
mod demo;
mod deny;
mod ebpf;
mod guest;
mod image;
mod lab;
mod layers;

mod setup;
mod sh;
mod sim;
mod steps;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tasks of the project. Each does the set-up that it needs, and says so.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, the demo and the tests need (Debian packages, rust-src, bpf-linker, cargo-deny)
    Setup,
    /// A five-node cluster on this machine, a service on it, and what happens when things die
    Demo {
        /// Leave the cluster up and print how to use it
        #[arg(long)]
        keep: bool,
    },
    /// All that every change must pass: format, lints, layers, licences, unit tests, a real cluster
    Test {
        /// Also the soak, fault and many-seed suites
        #[arg(long)]
        long: bool,
        /// Also the suites that need the virtual machine
        #[arg(long)]
        vm: bool,
        /// Only the steps whose name contains this
        #[arg(long)]
        only: Option<String>,
    },
    /// A cluster on this machine, to play with
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Measure against peers in the same run
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Whole clusters in virtual time, by seeds
    Sim(sim::SimOptions),
    /// Take the picture of the voting app, served through a cluster's mesh, for `docs/pictures` (installs Chromium)
    Pictures,
    /// Format all code
    Fmt,
    /// Format check, clippy, layers, sizes, licences
    Lint,
    /// Run a shell command in the test guest (Debian 12 with its own kernel); /share is target/guest/share
    Guest { command: String },
    /// Build the BPF object reproducibly
    Ebpf {
        /// Compare with the committed object instead of replacing it
        #[arg(long)]
        check: bool,
        /// Write what the kernel's verifier makes of it, here and in the test guest, to `docs/design/programs.md`
        #[arg(long, conflicts_with = "check")]
        budgets: bool,
    },
}

#[derive(Subcommand)]
enum BenchCommand {
    /// A first table in a few minutes
    Quick {
        /// Passed on: see `--help` of `bench-load quick`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The data plane beside its peers, with its goals
    Dataplane {
        /// Passed on: see `--help` of `bench-load dataplane`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The control plane beside dockerd's and etcd, with its goals
    Control {
        /// Passed on: see `--help` of `bench-load control`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// HTTP beside Docker Swarm's own mesh and IPVS, in the test guest
    Guest {
        /// The result goes to `docs/bench-guest.md` and `.json`, else to `target/bench`
        #[arg(long)]
        docs: bool,
        /// Passed on: see `--help` of `bench-load guest`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run(setup::Scope::Everything),
        Task::Demo { keep } => demo::run(keep),
        Task::Test { long, vm, only } => test::run(&test::Options { long, vm, only }),
        Task::Lab(command) => lab::run(command),
        Task::Bench(BenchCommand::Quick { arguments }) => artifacts::bench("quick", &arguments),
        Task::Bench(BenchCommand::Dataplane { arguments }) => artifacts::bench("dataplane", &arguments),
        Task::Bench(BenchCommand::Control { arguments }) => artifacts::bench("control", &arguments),
        Task::Bench(BenchCommand::Guest { docs, arguments }) => artifacts::bench_in_guest(docs, &arguments),
        Task::Sim(options) => sim::run(&options),
        Task::Pictures => test::pictures(),
        Task::Fmt => sh::cargo(&["fmt", "--all"]),
        Task::Lint => test::lint(),
        Task::Guest { command } => {
            setup::run(setup::Scope::Guest)?;
            guest::Guest::build()?.run(&command)
        }
        Task::Ebpf { check: true, .. } => ebpf::check(),
        Task::Ebpf { budgets: true, .. } => budgets::write(),
        Task::Ebpf { .. } => ebpf::write(),
    }
}
