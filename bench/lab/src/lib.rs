//! A whole cluster on one machine: one network namespace per node on a bridge in a namespace of its own, one real
//! `meshd` per node, joined by the real join flow through the real `docker` CLI.
//!
//! Nothing here talks to the daemons but through their command line, their socket and their signals, so that what
//! holds in the lab holds on real machines.

mod daemon;
mod downloads;
mod engine;
mod lab;
pub mod leftovers;
mod net;
pub mod process;
mod state;
mod traffic;

pub use downloads::{Downloads, DownloadsReport};
pub use lab::{Lab, NodeStatus};
pub use net::{Way, has_ipv6};
pub use process::{Captured, run, try_run, wait_until};
pub use state::{LabOptions, NodeRecord, Role};
pub use traffic::{Answer, Connections, Traffic, TrafficReport, request};
