//! Raft by openraft: encrypted log and snapshots, transport, membership.
//!
//! [`Consensus`] is the production [`control_store::ReplicatedStore`]. Order of a manager's life:
//! open (one of [`Consensus::bootstrap`], [`Consensus::open`], [`Consensus::create`], [`Consensus::recover`]), mount
//! [`Consensus::service`] on the RPC listener, and for a new member [`Consensus::join`].
#![forbid(unsafe_code)]

mod backup;
mod consensus;
mod crypt;
mod ended;
mod error;
mod fence;
mod gathering;
mod housekeeping;
mod key_file;
mod leadership;
mod limits;
mod log;
mod machine;
mod membership;
mod network;
mod quorum;
mod read;
mod recovery;
mod service;
mod shared_call;
mod snapshot;
mod types;
mod write;

pub use backup::{Backup, BackupError, BackupSecret, MIN_KEY_FILE_LEN, MIN_PASSPHRASE_LEN};
pub use consensus::{Consensus, Options};
pub use crypt::{Kek, Wrapping};
pub use error::{JoinError, MembershipError, OpenError};
pub use fence::Beyond;
pub use key_file::{DataKey, StoredKey};
pub use leadership::Leadership;
pub use limits::raft_config;
pub use snapshot::SnapshotTimes;
pub use types::{Batch, Member, Proposal, Reply};

#[cfg(test)]
mod tests;
