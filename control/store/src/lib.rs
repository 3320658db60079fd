//! The cluster's state as typed, persistent tables: [`State::apply`] takes entries, gives events; a snapshot is a
//! cheap clone. [`ReplicatedStore`] is the seam to whatever replicates entries.
#![forbid(unsafe_code)]

mod event;
mod former;
mod names;
mod payloads;
mod replicated;
mod requests;
mod snapshot;
mod state;
mod table;
mod task_index;
mod watch;

pub use event::{Event, EventBatch, EventKind};
pub use former::{FormerManager, FormerManagers};
pub use payloads::{MAX_PAYLOAD_BYTES, held};
pub use replicated::{LocalStore, ProposeError, ReadError, ReplicatedStore};
pub use requests::REMEMBERED_FOR;
pub use snapshot::SnapshotError;
pub use state::{ApplyError, State};
pub use table::Table;
pub use watch::{EventReceiver, MAX_WAITING_BATCHES, Watchers};

#[cfg(test)]
mod tests;
