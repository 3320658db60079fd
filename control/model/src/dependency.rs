//! Secrets and configs: named bytes that tasks are given as files. swarmkit has one word for both, a task's dependencies.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::DependencyId;
use crate::object::Meta;
use crate::spec::Labels;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DependencyKind {
    /// The API never gives its bytes away again.
    Secret,
    Config,
}

impl DependencyKind {
    pub const ALL: [Self; 2] = [Self::Secret, Self::Config];

    /// Docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }

    /// Its bytes are fewer than this (swarmkit `MaxSecretSize`, `MaxConfigSize`).
    pub fn limit_bytes(self) -> usize {
        match self {
            Self::Secret => 500 << 10,
            Self::Config => 1000 << 10,
        }
    }

    /// Where in a container a file is whose target is no absolute path.
    pub fn default_dir(self) -> &'static str {
        match self {
            Self::Secret => "/run/secrets",
            Self::Config => "/",
        }
    }
}

/// A secret or a config. Its name is unique among those of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    pub id: DependencyId,
    pub kind: DependencyKind,
    pub meta: Meta,
    pub spec: DependencySpec,
}

impl Dependency {
    pub fn new(id: DependencyId, kind: DependencyKind, spec: DependencySpec) -> Self {
        Self { id, kind, meta: Meta::default(), spec }
    }
}

/// What the user said. Only labels change later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencySpec {
    pub name: String,
    pub labels: Labels,
    pub data: Payload,
    /// Its bytes are a Go template, which each task's node expands (Docker: `--template-driver golang`).
    pub is_template: bool,
}

/// Bytes that logs don't show.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Payload(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A secret or config of a container, and its file there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyFile {
    pub kind: DependencyKind,
    pub id: DependencyId,
    /// The object's name, as the client gave it beside the id.
    pub name: String,
    /// An absolute path, or one below [`DependencyKind::default_dir`].
    pub target: String,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_of_a_secret_has_none_of_its_bytes() {
        let data = Payload(b"hunter2".to_vec());
        let spec = DependencySpec { name: "password".into(), data, ..DependencySpec::default() };
        let secret = Dependency::new(DependencyId::from_bits(1), DependencyKind::Secret, spec);
        let printed = format!("{secret:?}");
        assert!(printed.contains("7 bytes") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn bytes_are_written_as_bytes() {
        let data = Payload(vec![0xff; 1000]);
        let written = rmp_serde::to_vec_named(&data).expect("encodable");
        assert_eq!(written.len(), 1003);
        assert_eq!(rmp_serde::from_slice::<Payload>(&written).expect("readable"), data);
    }
}
