//! The real openraft, with the product's settings, on its deterministic runtime: its log and snapshots on model disks, its
//! calls over the model network.
//!
//! Not in here: `control-consensus`' own files and calls, which need threads and TLS; its tests try those.

mod cluster;
mod disk;
mod laws;
mod machine;
mod types;
mod wire;

pub use cluster::{RaftOutcome, RaftRun};
