//! `cargo xtask lab …`: the lab library's verbs as commands.

use std::process::Stdio;

use anyhow::{Result, bail};
use bench_lab::{Lab, LabOptions};
use clap::{Args, Subcommand};

use crate::artifacts::{Profile, programs};
use crate::setup;

/// Which lab.
#[derive(Args)]
pub struct Name {
    /// Name of the lab
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(Subcommand)]
pub enum LabCommand {
    /// Make the cluster, or complete it
    Up {
        #[arg(long, default_value_t = 3)]
        managers: usize,
        #[arg(long, default_value_t = 2)]
        workers: usize,
        #[command(flatten)]
        lab: Name,
        /// Import the demo's image as `whoami:1` on every node
        #[arg(long)]
        whoami: bool,
        /// Further arguments for every meshd
        #[arg(last = true)]
        meshd_args: Vec<String>,
    },
    /// Run a command in a node's network (`client` is the client's)
    Exec {
        #[command(flatten)]
        lab: Name,
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// kill -9 a node's meshd
    Kill {
        #[command(flatten)]
        lab: Name,
        node: String,
    },
    /// Stop a node's meshd cleanly
    Stop {
        #[command(flatten)]
        lab: Name,
        node: String,
    },
    /// Start a node's meshd
    Start {
        #[command(flatten)]
        lab: Name,
        node: String,
    },
    /// Pull a node's network plug
    Isolate {
        #[command(flatten)]
        lab: Name,
        node: String,
    },
    /// Put the plug back
    Heal {
        #[command(flatten)]
        lab: Name,
        node: String,
    },
    /// Nodes, addresses, processes, sockets
    Status(Name),
    /// Take everything down
    Down(Name),
}

/// Runs one verb.
pub fn run(command: LabCommand) -> Result<()> {
    match command {
        LabCommand::Up { managers, workers, lab, whoami, meshd_args } => {
            setup::run(setup::Scope::Demo)?;
            let programs = programs(Profile::Dev)?;
            let options = LabOptions {
                name: lab.name,
                managers,
                workers,
                meshd: programs.meshd,
                meshd_args,
                is_ipv6_only: false,
                has_docker: false,
            };
            let lab = Lab::up(&options)?;
            if whoami {
                let tar = programs.whoami_image.to_string_lossy().into_owned();
                for node in lab.nodes() {
                    lab.docker(
                        &node.name,
                        &["import", "--change", "ENTRYPOINT [\"/whoami\"]", &tar, "whoami:1"],
                    )?;
                }
            }
            print_status(&lab);
            Ok(())
        }
        LabCommand::Exec { lab, node, command } => {
            let lab = Lab::open(&lab.name)?;
            let status =
                lab.command(&node, &command[0])?.args(&command[1..]).stdin(Stdio::inherit()).status()?;
            if !status.success() {
                bail!("{} ended with {status}", command[0]);
            }
            Ok(())
        }
        LabCommand::Kill { lab, node } => Lab::open(&lab.name)?.kill(&node),
        LabCommand::Stop { lab, node } => Lab::open(&lab.name)?.stop(&node),
        LabCommand::Start { lab, node } => Lab::open(&lab.name)?.start(&node),
        LabCommand::Isolate { lab, node } => Lab::open(&lab.name)?.isolate(&node),
        LabCommand::Heal { lab, node } => Lab::open(&lab.name)?.heal(&node),
        LabCommand::Status(lab) => {
            print_status(&Lab::open(&lab.name)?);
            Ok(())
        }
        LabCommand::Down(lab) if Lab::exists(&lab.name)? => Lab::open(&lab.name)?.down(),
        LabCommand::Down(_) => Ok(()),
    }
}

/// One line per node, and how to point docker at the lab.
pub fn print_status(lab: &Lab) {
    println!("{:<12} {:<15} {:<8} SOCKET", "NODE", "ADDRESS", "MESHD");
    for node in lab.status() {
        let pid = node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        println!(
            "{:<12} {:<15} {:<8} unix://{}",
            node.name,
            node.address.to_string(),
            pid,
            node.socket.display()
        );
    }
    if let Some(first) = lab.status().first() {
        println!("\nexport DOCKER_HOST=unix://{}", first.socket.display());
    }
}
