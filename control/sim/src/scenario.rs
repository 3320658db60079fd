//! What goes wrong in a run.

use std::str::FromStr;

use crate::faults::Fault;

/// Kinds of trouble; users do their work in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Nothing fails: services come, change and go.
    Calm,
    /// Daemons are killed, machines lose their power, also in the middle of a write.
    Crashes,
    /// Ways are cut, in one direction or both; datagrams are lost.
    Partitions,
    /// Kernels and runtimes refuse.
    Runtimes,
    /// Wall clocks jump.
    Clocks,
    /// Most services are jobs; daemons, machines and runtimes fail.
    Jobs,
    /// Most services are spread anew over nodes that come; machines and daemons go and come.
    Rebalance,
    /// With gossip: machines are lost, managers too, all of them, ways are cut.
    Gossip,
    /// With gossip: daemons stand still and some datagrams are lost, all the time.
    Stalls,
    /// All of these together.
    Storm,
}

impl Scenario {
    pub const ALL: [Self; 10] = [
        Self::Calm,
        Self::Crashes,
        Self::Partitions,
        Self::Runtimes,
        Self::Clocks,
        Self::Jobs,
        Self::Rebalance,
        Self::Gossip,
        Self::Stalls,
        Self::Storm,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Crashes => "crashes",
            Self::Partitions => "partitions",
            Self::Runtimes => "runtimes",
            Self::Clocks => "clocks",
            Self::Jobs => "jobs",
            Self::Rebalance => "rebalance",
            Self::Gossip => "gossip",
            Self::Stalls => "stalls",
            Self::Storm => "storm",
        }
    }

    pub(crate) fn faults(self) -> &'static [Fault] {
        match self {
            Self::Calm => &[],
            Self::Crashes | Self::Rebalance => &[Fault::Crash],
            Self::Partitions => &[Fault::Cut],
            Self::Runtimes => &[Fault::Refusal],
            Self::Clocks => &[Fault::Clock],
            Self::Jobs => &[Fault::Crash, Fault::Refusal],
            Self::Gossip => &[Fault::Loss, Fault::Loss, Fault::Loss, Fault::Cut],
            Self::Stalls => &[Fault::Stall],
            Self::Storm => {
                &[Fault::Crash, Fault::Cut, Fault::Refusal, Fault::Clock, Fault::Stall, Fault::Loss]
            }
        }
    }

    /// Of a hundred things that happen, how many are faults.
    pub(crate) fn percent_of_faults(self) -> usize {
        match self {
            Self::Calm => 0,
            // Between two losses the nodes shall see that all is well.
            Self::Gossip => 15,
            _ => 50,
        }
    }

    /// Nodes take part in gossip. Without it managers alone say who lives, as among nodes that take no part.
    pub(crate) fn has_gossip(self) -> bool {
        matches!(self, Self::Gossip | Self::Stalls | Self::Storm)
    }

    /// New services that are jobs, of a hundred.
    pub(crate) fn percent_of_jobs(self) -> usize {
        match self {
            Self::Jobs => 75,
            Self::Storm => 25,
            _ => 0,
        }
    }

    /// New replicated services that are spread anew, of a hundred.
    pub(crate) fn percent_rebalanced(self) -> usize {
        match self {
            Self::Rebalance => 75,
            Self::Storm => 25,
            _ => 0,
        }
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scenario| scenario.name() == word);
        found.ok_or_else(|| format!("no scenario {word}"))
    }
}
