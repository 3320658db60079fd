//! The parts of the control plane's run.

use clap::ValueEnum;

use super::{assign, crowd, everywhere, failover, first_task, idle, lost, placing, scale, writes};
use crate::compare::{Comparison, Plan};

/// How the control plane's figures are taken.
pub const METHOD: &str = "Three managers each: meshd in network namespaces on a bridge, with mutual TLS and encrypted \
    logs; Debian's dockerd in namespaces on another bridge; Debian's etcd in one namespace, without TLS. All are on this \
    machine's processors and its one disk, and all write through to it (fsync). Peers have at most 5 samples where each \
    takes long.";

/// A part of the control plane's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ControlSection {
    /// The leader killed, and stopped: the next accepted write, failed calls
    Failover,
    /// A node gone: out of every load balancer, marked down, replaced
    Lost,
    /// A service made, to its first task running
    FirstTask,
    /// 10,000 replicas, to all assigned
    Assign,
    /// The scheduler by itself, in this process
    Placing,
    /// Small writes of 64 clients
    Writes,
    /// A backend less, to the maps of 25 nodes
    Everywhere,
    /// Memory and processor time of a manager at rest
    Idle,
    /// The leader of 1,000 simulated nodes with 50 tasks each
    Crowd,
    /// A snapshot, and a new leader's first placement, of large states in this process
    Scale,
}

impl ControlSection {
    /// Measures all peers of the section. What can't be measured says why in its row.
    pub fn measure(self, plan: Plan) -> Vec<Comparison> {
        match self {
            Self::Failover => failover::measure(plan),
            Self::Lost => lost::measure(plan),
            Self::FirstTask => first_task::measure(plan),
            Self::Assign => assign::measure(plan),
            Self::Placing => placing::measure(plan),
            Self::Writes => writes::measure(plan),
            Self::Everywhere => everywhere::measure(plan),
            Self::Idle => idle::measure(plan),
            Self::Crowd => crowd::measure(plan),
            Self::Scale => scale::measure(plan),
        }
    }
}
