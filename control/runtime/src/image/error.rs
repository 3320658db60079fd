//! What image operations can answer besides success, in Docker's words where it has some.

use std::path::PathBuf;

use super::reference::ParseReferenceError;

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
    /// 404 in the API; a task that needs it is REJECTED.
    #[error("No such image: {0}")]
    NotFound(String),
    /// 409 in the API.
    #[error(
        "conflict: unable to remove repository reference \"{name}\" (must force) - container {container} is using its referenced image {image}"
    )]
    InUse { name: String, container: String, image: String },
    #[error("{0}")]
    Pull(#[from] PullError),
    #[error("{0}")]
    Change(#[from] ChangeError),
    /// An archive has one image here.
    #[error("several images in one archive are not supported by this daemon: save them one by one")]
    SeveralImages,
    #[error("{0}")]
    Push(String),
    /// 401 in the API.
    #[error("login attempt to {registry} failed: {reason}")]
    Login { registry: String, reason: String },
    /// The bytes that a client sent are no image.
    #[error("{0}")]
    BadArchive(String),
    #[error("{program} {verb}: {output}")]
    Tool { program: &'static str, verb: String, output: String },
    #[error("image store {path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("image store: {what} is damaged: {reason}")]
    Damaged { what: String, reason: String },
}

/// Why a registry did not give an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    #[error("manifest for {0} not found: manifest unknown: manifest unknown")]
    ManifestUnknown(String),
    #[error("pull access denied for {0}, repository does not exist or may require 'docker login'")]
    Denied(String),
    #[error("pull of {reference}: {reason}")]
    Registry { reference: String, reason: String },
}

/// Why a `--change` instruction of `docker import` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("{0} is not a valid change command")]
    NotAllowed(String),
    #[error("HEALTHCHECK: {0:?} is neither an option nor NONE or CMD")]
    Healthcheck(String),
    #[error("{instruction} requires {needs}")]
    Arguments { instruction: String, needs: &'static str },
}

impl ImageError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
