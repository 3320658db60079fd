//! Executors: the embedded oci runtime and its image store.

mod files;
pub mod image;
mod oci;

pub use oci::{
    ContainerInfo, ContainerRecord, Ended, Health, HealthCheck, Oci, OciOptions, OpenError, Probe, Stage,
};
