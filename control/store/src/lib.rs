//! The cluster's state as typed, persistent tables: [`State::apply`] takes entries, gives events; a snapshot is a
//! cheap clone. [`ReplicatedStore`] is the seam to whatever replicates entries.
#![forbid(unsafe_code)]

mod event;
mod former;
mod replicated;
mod requests;
mod state;
mod table;
mod task_index;
mod watch;

pub use event::{Event, EventBatch, EventKind};
pub use former::FormerManagers;
pub use replicated::{LocalStore, ProposeError, ReadError, ReplicatedStore};
pub use requests::REMEMBERED_FOR;
pub use state::{ApplyError, SnapshotError, State};
pub use table::Table;
pub use watch::{EventReceiver, MAX_WAITING_BATCHES, Watchers};

#[cfg(test)]
mod tests;
