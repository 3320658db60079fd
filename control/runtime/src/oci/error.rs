//! Why a container could not be prepared. Most of it is the spec's fault and can't be cured by trying again.

use std::path::PathBuf;

use control_model::DependencyKind;
use control_model::template::TemplateError;

use super::limits::LimitError;
use super::security::UnknownCapability;
use super::user::UserError;
use crate::image::ImageError;
use crate::volume::VolumeError;

/// `Display` is what `docker service ps` shows, in Docker's words where it has some.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    LogDriver(#[from] control_model::log_driver::LogDriverError),
    #[error("{0}")]
    Image(#[from] ImageError),
    #[error("no command specified")]
    NoCommand,
    #[error("{0}")]
    User(#[from] UserError),
    #[error("{0}")]
    Capability(#[from] UnknownCapability),
    #[error("{0}")]
    Limit(#[from] LimitError),
    #[error("{0}")]
    Template(#[from] TemplateError),
    #[error("invalid mount config for type \"bind\": bind source path does not exist: {0}")]
    BindSource(String),
    #[error("{0}")]
    Volume(#[from] VolumeError),
    #[error("{} not found: {name}", .kind.word())]
    Dependency { kind: DependencyKind, name: String },
    #[error("{0} is a template, and no UTF-8 text")]
    NoText(String),
    /// Says nothing of what is in it.
    #[error("{} {name}: line {line} of the template {why}", .kind.word())]
    Payload { kind: DependencyKind, name: String, line: usize, why: String },
    #[error("invalid target file name: {0}")]
    Target(String),
    #[error("invalid IP address in add-host: {0:?}")]
    ExtraHost(Vec<String>),
    #[error("invalid signal: {0}")]
    Signal(String),
    #[error("no init binary on this node: install tini (tini-static) or catatonit, or leave --init out")]
    NoInit,
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl PrepareError {
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
