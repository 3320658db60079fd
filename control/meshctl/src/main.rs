//! `meshctl`: what the data planes of one node or of all do, read live from their kernels.
#![forbid(unsafe_code)]

mod backup;
mod base64;
mod dns;
mod flows;
mod nodes;
mod pins;
mod secret;
mod source;
mod text;
mod top;
mod trace;
mod verify;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use dataplane_model::inspect::{MAX_FLOWS_SHOWN, NodeOutcome, VerifyReport};
use serde::Serialize;

use crate::backup::{BackupArguments, RestoreArguments};
use crate::dns::DnsCommand;
use crate::nodes::Asked;
use crate::secret::SecretCommand;
use crate::source::Source;
use crate::trace::TraceArguments;

/// Shows what a node's data plane does, read live from the kernel's maps.
///
/// Asks the node's meshd. If it does not answer and the caller is root, the maps are read straight from their pins. A
/// manager's meshd also asks other nodes (--node, --all).
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
    /// Show another node: its name, id or tunnel end. The meshd that is asked must be a manager's
    #[arg(long, value_name = "NODE", global = true, value_parser = parse_name, conflicts_with = "all")]
    node: Option<String>,
    /// Show all nodes of the cluster. The meshd that is asked must be a manager's
    #[arg(long, global = true)]
    all: bool,
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
    /// What the node's gossip thinks of the others, by itself and without a manager
    Gossip,
    /// Compare a node's kernel with what the managers' assignments want of it; fails if anything differs
    Verify,
    /// What would become of a connection that begins now, look-up by look-up; no packet is sent
    Trace(TraceArguments),
    /// Once a second what is new: flows of each published port, packets of each program, drops
    Top {
        /// Show one second and end
        #[arg(long)]
        once: bool,
    },
    /// Single packets, and what each program did with them, of one second
    Flows {
        /// One of so many packets, by chance, at each program
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        every: u32,
        /// Second after second, until nobody reads any more
        #[arg(long)]
        watch: bool,
    },
    /// Back up the cluster's state, sealed: tokens, certificates' root, nodes, services, networks. On a running manager
    Backup(BackupArguments),
    /// Make a cluster of a backup, with this node, which is in no swarm, as its only manager
    Restore(RestoreArguments),
    /// Secrets of services
    #[command(subcommand)]
    Secret(SecretCommand),
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
    let own = Source::new(&arguments.host, &arguments.bpffs_dir);
    let source = arguments.node.as_deref().map(|node| own.of_node(node)).unwrap_or(own);
    let view = View { arguments, source };
    match &arguments.command {
        Command::Status => view.show(Source::status, text::status, all_is_well).await,
        Command::Lb(command) => load_balancing(&view, command).await,
        Command::Dns(command) => names(&view, command).await,
        Command::Trace(trace) => {
            let ask = async |source: &Source| trace::ask(source, trace).await;
            view.of_one_node()?.show(ask, trace::text, all_is_well).await
        }
        Command::Top { once } => {
            top::show(&view.sources().await?, *once, arguments.json).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Flows { every, watch } => {
            flows::show(&view.sources().await?, *every, *watch, arguments.json).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Backup(asked) => tell(&backup::take(view.own_socket()?, asked).await?),
        Command::Restore(asked) => tell(&backup::restore(view.own_socket()?, asked).await?),
        Command::Secret(SecretCommand::Rotate(asked)) => {
            tell(&secret::rotate(view.own_socket()?, asked).await?)
        }
        Command::Hooks => {
            let ask = async |source: &Source| Ok(source.status().await?.hooks);
            view.show(ask, |rows| text::hooks(rows), all_is_well).await
        }
        Command::Gossip => view.show(Source::gossip, text::gossip, all_is_well).await,
        Command::Fdb => view.show(Source::fdb, text::fdb, all_is_well).await,
        Command::Verify => view.show(Source::verify, verify::text, VerifyReport::is_sound).await,
        Command::Endpoints => view.show(Source::endpoints, |rows| text::endpoints(rows), all_is_well).await,
        Command::Drops { watch: true } => {
            watch::drops(&view.sources().await?, arguments.json).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Drops { watch: false } => {
            view.show(Source::drops, text::drops, watch::is_accounted_for).await
        }
    }
}

fn tell(text: &str) -> anyhow::Result<ExitCode> {
    write(text)?;
    Ok(ExitCode::SUCCESS)
}

async fn load_balancing(view: &View<'_>, command: &LbCommand) -> anyhow::Result<ExitCode> {
    match command {
        LbCommand::Ls => {
            view.show(Source::load_balancers, |rows| text::load_balancers(rows), all_is_well).await
        }
        LbCommand::Ring { of } => {
            let ask = async |source: &Source| {
                let rings = source.rings(of).await?;
                anyhow::ensure!(
                    !rings.is_empty(),
                    "no service, frontend or virtual address here is called {of}"
                );
                Ok(rings)
            };
            view.show(ask, |rings| text::rings(rings), all_is_well).await
        }
        LbCommand::Flows { limit } => {
            let ask = async |source: &Source| source.flows(*limit).await;
            view.show(ask, text::flows, all_is_well).await
        }
    }
}

async fn names(view: &View<'_>, command: &DnsCommand) -> anyhow::Result<ExitCode> {
    match command {
        DnsCommand::Zone { task, network } => {
            let ask =
                async |source: &Source| dns::ask_zone(source, task.as_deref(), network.as_deref()).await;
            view.show(ask, dns::zone, all_is_well).await
        }
        DnsCommand::Query { task, name, record_type } => {
            let ask = async |source: &Source| source.dns_query(task, name, record_type).await;
            view.of_one_node()?.show(ask, dns::query, all_is_well).await
        }
    }
}

/// What is shown of whom.
struct View<'a> {
    arguments: &'a Arguments,
    /// The node that was asked for.
    source: Source,
}

impl View<'_> {
    /// The daemon that is asked, where no other will do.
    fn own_socket(&self) -> anyhow::Result<&Path> {
        let Arguments { all, node, host, .. } = self.arguments;
        anyhow::ensure!(
            !all && node.is_none(),
            "--node and --all are for what is shown; ask the manager itself"
        );
        Ok(host)
    }

    /// Refuses to show all nodes.
    fn of_one_node(&self) -> anyhow::Result<&Self> {
        anyhow::ensure!(!self.arguments.all, "a task is on one node: give it with --node instead of --all");
        Ok(self)
    }

    /// The node's way alone, or those of all nodes.
    async fn sources(&self) -> anyhow::Result<Vec<Asked>> {
        if self.arguments.all {
            return nodes::all(&self.source).await;
        }
        let source = self.source.clone();
        Ok(vec![Asked { hostname: String::new(), node_id: String::new(), source }])
    }

    /// Prints what the nodes say; fails if one says nothing, or something that is not well.
    async fn show<T: Serialize>(
        &self,
        ask: impl AsyncFn(&Source) -> anyhow::Result<T>,
        to_text: impl Fn(&T) -> String,
        is_well: impl Fn(&T) -> bool,
    ) -> anyhow::Result<ExitCode> {
        let all_well = if self.arguments.all {
            let answers = nodes::gather(&self.sources().await?, &ask).await;
            print(self.arguments, &answers, |answers| nodes::text(answers, &to_text))?;
            answers.iter().all(|one| matches!(&one.outcome, NodeOutcome::Answer(answer) if is_well(answer)))
        } else {
            let answer = ask(&self.source).await?;
            print(self.arguments, &answer, to_text)?;
            is_well(&answer)
        };
        Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Where an answer says all that there is to say.
fn all_is_well<T>(_: &T) -> bool {
    true
}

/// Ends quietly when the reader has enough (`meshctl … | head`).
fn print<T: Serialize>(
    arguments: &Arguments,
    value: &T,
    to_text: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    let out =
        if arguments.json { serde_json::to_string_pretty(value)? + "\n" } else { printable(&to_text(value)) };
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

/// Without what a terminal would obey: other nodes may say anything.
fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
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
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:/[]".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("names have letters, digits and -._:/[] only".to_owned())
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
        for name in ["198.18.0.11:8080/tcp", "[2001:db8::11]:8080/tcp", "outside/2001:db8::1"] {
            assert_eq!(parse_name(name), Ok(name.to_owned()));
        }
        assert!(parse_name("a&limit=1").is_err() && parse_name("").is_err());
        assert_eq!(parse_limit("10000"), Ok(10_000));
        assert!(parse_limit("0").is_err() && parse_limit("10001").is_err());
    }

    #[test]
    fn a_terminal_is_told_nothing_by_other_nodes() {
        assert_eq!(printable("a\x1b[2Jb\r\u{9b}\nü"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\nü");
    }

    #[test]
    fn a_host_is_a_unix_socket() {
        assert_eq!(parse_host("unix:///run/x.sock"), Ok(PathBuf::from("/run/x.sock")));
        assert_eq!(parse_host("/run/x.sock"), Ok(PathBuf::from("/run/x.sock")));
        assert!(parse_host("tcp://127.0.0.1:2375").is_err());
        assert!(parse_host("").is_err());
    }
}
