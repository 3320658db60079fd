//! Executors: the embedded oci runtime and its image store; the host's Docker Engine.

mod docker;
mod events;
mod files;
pub mod image;
mod inside;
mod logs;
mod oci;
mod standalone;
mod unmount;
mod volume;

pub use docker::{ConnectError, DockerEngine, DockerOptions, TaskContainer, is_of_sandbox};
pub use events::{ContainerChange, Event, EventKind, Events, ImageChange, VolumeChange};
pub use inside::{CopyError, Overwriting, PathStat};
pub use oci::{
    Attachment, Console, ContainerInfo, ContainerRecord, ControlError, CpuUsage, DiskUse, Ended, Exec,
    ExecError, ExecSpec, Health, HealthCheck, InterfaceUsage, IoUsage, MemoryUsage, MountPoint, Oci,
    OciOptions, OpenError, OutputError, OutputPieces, Place, Probe, ProcessTable, Stage, StandaloneError,
    StandaloneRecord, Unpacking, Usage,
};
pub use standalone::{Attacher, Ground, NodeExecutor, Phase, Standalone};
pub use volume::{OptionError, Volume, VolumeError, VolumeSpec};
