//! `meshd`: the daemon, and its few subcommands.
#![deny(unsafe_code)]

mod memory;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use dataplane_dns::ServerOptions;
use meshd::config::{Cli, Command, Config};
use meshd::{daemon, teardown};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in format!("{error:#}").lines() {
                eprintln!("meshd: {line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let config = Config::load(&cli.flags)?;
    start_log(&config)?;
    match &cli.command {
        None => {
            memory::keep_small();
            daemon::run(config)
        }
        Some(Command::Dns) => {
            let options = ServerOptions::new(config.run_dir.join("dns.sock"));
            dataplane_dns::run_server(&options).context("the DNS process failed")
        }
        Some(Command::Check) => {
            daemon::refuse_if_missing(&config)?;
            println!("This machine has all that meshd needs.");
            Ok(())
        }
        Some(Command::Teardown) => teardown::run(&config),
    }
}

/// openraft tells every step of an election at `info`, and warns ten times a second of a peer that is away: it is heard
/// from `error` on; bollard tells at `debug` what the engine answers, users' environments included. Unless the filter names them.
const QUIET: [&str; 2] = ["openraft=error", "bollard=info"];

fn start_log(config: &Config) -> Result<()> {
    let mut filter = EnvFilter::try_new(&config.log_level).context("--log-level")?;
    for quiet in QUIET {
        let (name, _) = quiet.split_once('=').unwrap_or_default();
        if !config.log_level.contains(name) {
            filter = filter.add_directive(quiet.parse().expect("a valid directive"));
        }
    }
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_terminal)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}
