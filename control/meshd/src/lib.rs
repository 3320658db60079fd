//! The node daemon: composes the control plane, the data plane, the containers and the API of one node.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod checks;
pub mod config;
pub mod daemon;
pub mod data_plane;
pub mod disk;
mod distribution;
mod engine;
pub mod host;
pub mod lock;
pub mod node;
pub mod notify;
pub mod teardown;
