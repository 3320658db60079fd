//! Executors: the embedded oci runtime and its image store.

mod events;
mod files;
pub mod image;
mod oci;
mod unmount;
mod volume;

pub use events::{ContainerChange, Event, EventKind, Events, ImageChange, VolumeChange};
pub use oci::{
    Console, ContainerInfo, ContainerRecord, Ended, Exec, ExecError, ExecSpec, Health, HealthCheck,
    MountPoint, Oci, OciOptions, OpenError, OutputPieces, Probe, Stage,
};
pub use volume::{OptionError, Volume, VolumeError, VolumeSpec};
