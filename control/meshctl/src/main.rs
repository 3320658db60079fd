//! `meshctl`: what one node's data plane does, read live from its kernel.
#![forbid(unsafe_code)]

mod pins;
mod source;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::source::Source;

/// Shows what a node's data plane does, read live from the kernel's maps.
///
/// Asks the node's meshd. If it does not answer and the caller is root, the maps are read straight from their pins.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version)]
struct Arguments {
    /// Socket of the node's meshd
    #[arg(short = 'H', long, value_name = "SOCKET", env = "DOCKER_HOST", global = true)]
    #[arg(default_value = "unix:///run/meshd/docker.sock", value_parser = parse_host)]
    host: PathBuf,
    /// Where meshd pins its maps and programs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/meshd", global = true)]
    bpffs_dir: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Node, cluster, hooks of each interface and why these, generation wanted and applied
    Status,
    /// Load balancers: published ports and virtual addresses
    #[command(subcommand)]
    Lb(LbCommand),
    /// Endpoints that the kernel forwards to
    Endpoints,
    /// What each program did with its packets; fails if one is not accounted for
    Drops,
}

#[derive(Debug, Subcommand)]
enum LbCommand {
    /// List frontends, their rings and backends
    Ls,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let source = Source::new(&arguments.host, &arguments.bpffs_dir);
    match &arguments.command {
        Command::Status => print(arguments, &source.status().await?, text::status)?,
        Command::Lb(LbCommand::Ls) => {
            print(arguments, &source.load_balancers().await?, |rows| text::load_balancers(rows))?;
        }
        Command::Endpoints => print(arguments, &source.endpoints().await?, |rows| text::endpoints(rows))?,
        Command::Drops => {
            let report = source.drops().await?;
            print(arguments, &report, text::drops)?;
            if report.programs.iter().any(|program| program.unaccounted() != 0) {
                eprintln!("meshctl: packets are not accounted for");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends quietly when the reader has enough (`meshctl … | head`).
fn print<T: Serialize>(
    arguments: &Arguments,
    value: &T,
    to_text: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    let out = if arguments.json { serde_json::to_string_pretty(value)? + "\n" } else { to_text(value) };
    match std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("can't write"),
    }
}

/// A socket's path, with or without `unix://`.
fn parse_host(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err("meshd listens at a unix socket: give unix:///path or /path".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_host_is_a_unix_socket() {
        assert_eq!(parse_host("unix:///run/x.sock"), Ok(PathBuf::from("/run/x.sock")));
        assert_eq!(parse_host("/run/x.sock"), Ok(PathBuf::from("/run/x.sock")));
        assert!(parse_host("tcp://127.0.0.1:2375").is_err());
        assert!(parse_host("").is_err());
    }
}
