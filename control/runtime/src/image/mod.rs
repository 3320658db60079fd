//! The node's images: names, content and unpacked root file systems.

mod archive;
mod build;
mod change;
mod content;
mod error;
mod health;
mod index;
mod reference;
mod share;
mod skopeo;
mod store;
mod unpack;

pub use change::ImageChanges;
pub(crate) use content::sha256_digest;
pub use error::{ChangeError, ImageError, PullError};
pub use index::ImageRecord;
pub use reference::{ParseReferenceError, Reference};
pub use share::{HistoryEntry, SavedImage};
pub use store::{ImageDetails, ImageStore, LocalImage};
