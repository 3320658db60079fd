//! `meshctl`: what one node's data plane does, read live from its kernel.
#![forbid(unsafe_code)]

mod dns;
mod pins;
mod source;
mod text;
mod top;
mod trace;
mod verify;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use dataplane_model::inspect::MAX_FLOWS_SHOWN;
use serde::Serialize;

use crate::dns::{DnsCommand, Shown};
use crate::source::Source;
use crate::trace::TraceArguments;

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
    /// Names: what the node's DNS process serves, and what a task gets
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Which program hangs at each interface, how, and why so
    Hooks,
    /// Endpoints that the kernel forwards to
    Endpoints,
    /// Where the node sends what it has for others: peers, owners of addresses, endpoints
    Fdb,
    /// Compare this node's kernel with what the managers' assignments want of it; fails if anything differs
    Verify,
    /// What would become of a connection that begins now, look-up by look-up; no packet is sent
    Trace(TraceArguments),
    /// Once a second what is new: flows of each published port, packets of each program, drops
    Top {
        /// Show one second and end
        #[arg(long)]
        once: bool,
    },
    /// What each program did with its packets; fails if one is not accounted for
    Drops {
        /// Once a second, what was dropped in it and why, until SIGINT
        #[arg(long)]
        watch: bool,
    },
}

#[derive(Debug, Subcommand)]
enum LbCommand {
    /// List frontends, their rings and backends
    Ls,
    /// A service's rings: who has which share, now and before its last changes
    Ring {
        /// Service, frontend (198.18.0.11:8080/tcp, or without the protocol) or virtual address
        #[arg(value_name = "SERVICE|FRONTEND", value_parser = parse_name)]
        of: String,
    },
    /// Flows that this node remembers because they enter by it, and those that it keeps for its backends
    Flows {
        /// Show at most so many of either kind
        #[arg(long, default_value_t = 100, value_parser = parse_limit)]
        limit: usize,
    },
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
        Command::Lb(LbCommand::Ring { of }) => {
            let rings = source.rings(of).await?;
            anyhow::ensure!(!rings.is_empty(), "no service, frontend or virtual address here is called {of}");
            print(arguments, &rings, |rings| text::rings(rings))?;
        }
        Command::Lb(LbCommand::Flows { limit }) => {
            print(arguments, &source.flows(*limit).await?, text::flows)?;
        }
        Command::Dns(command) => match dns::ask(&source, command).await? {
            Shown::Zone(report) => print(arguments, &report, dns::zone)?,
            Shown::Query(report) => print(arguments, &report, dns::query)?,
        },
        Command::Trace(trace) => {
            print(arguments, &trace::ask(&source, trace).await?, trace::text)?;
        }
        Command::Top { once } => top::show(&source, *once, arguments.json).await?,
        Command::Hooks => print(arguments, &source.status().await?.hooks, |rows| text::hooks(rows))?,
        Command::Fdb => print(arguments, &source.fdb().await?, text::fdb)?,
        Command::Verify => {
            let report = source.verify().await?;
            print(arguments, &report, verify::text)?;
            if !report.is_sound() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Endpoints => print(arguments, &source.endpoints().await?, |rows| text::endpoints(rows))?,
        Command::Drops { watch: true } => watch::drops(&source, arguments.json).await?,
        Command::Drops { watch: false } => {
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
    write(&out)?;
    Ok(())
}

/// False if nobody reads any more.
fn write(out: &str) -> anyhow::Result<bool> {
    match std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("can't write"),
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

/// What may be the name of a service, a frontend or an address; it goes into a path.
fn parse_name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:/".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("names have letters, digits and -._:/ only".to_owned())
}

fn parse_limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_FLOWS_SHOWN).contains(limit));
    limit.ok_or_else(|| format!("must be a number from 1 to {MAX_FLOWS_SHOWN}"))
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
    fn names_and_limits_are_checked() {
        assert_eq!(parse_name("198.18.0.11:8080/tcp"), Ok("198.18.0.11:8080/tcp".to_owned()));
        assert!(parse_name("a&limit=1").is_err() && parse_name("").is_err());
        assert_eq!(parse_limit("10000"), Ok(10_000));
        assert!(parse_limit("0").is_err() && parse_limit("10001").is_err());
    }

    #[test]
    fn a_host_is_a_unix_socket() {
        assert_eq!(parse_host("unix:///run/x.sock"), Ok(PathBuf::from("/run/x.sock")));
        assert_eq!(parse_host("/run/x.sock"), Ok(PathBuf::from("/run/x.sock")));
        assert!(parse_host("tcp://127.0.0.1:2375").is_err());
        assert!(parse_host("").is_err());
    }
}
