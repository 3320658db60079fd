//! Executors: the embedded oci runtime and its image store.

mod files;
pub mod image;
mod oci;

pub use oci::{ContainerInfo, ContainerRecord, Ended, Oci, OciOptions, OpenError, Stage};
