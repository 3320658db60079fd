//! What goes wrong in a run.

use std::str::FromStr;

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
    /// All of these together.
    Storm,
}

impl Scenario {
    pub const ALL: [Self; 6] =
        [Self::Calm, Self::Crashes, Self::Partitions, Self::Runtimes, Self::Clocks, Self::Storm];

    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Crashes => "crashes",
            Self::Partitions => "partitions",
            Self::Runtimes => "runtimes",
            Self::Clocks => "clocks",
            Self::Storm => "storm",
        }
    }

    pub(crate) fn has(self, other: Self) -> bool {
        self == Self::Storm || self == other
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scenario| scenario.name() == word);
        found.ok_or_else(|| format!("no scenario {word}"))
    }
}
