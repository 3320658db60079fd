//! Executors: the embedded oci runtime and its image store.

mod events;
mod files;
pub mod image;
mod oci;

pub use events::{ContainerChange, Event, EventKind, Events, ImageChange};
pub use oci::{
    Console, ContainerInfo, ContainerRecord, Ended, Exec, ExecError, ExecSpec, Health, HealthCheck, Oci,
    OciOptions, OpenError, OutputPieces, Probe, Stage,
};
