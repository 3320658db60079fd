//! Why an operation failed, one type for each.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a manager's Raft could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0} already holds raft data")]
    Exists(PathBuf),
    #[error("{0} holds no raft data")]
    Absent(PathBuf),
    #[error("{0} holds nothing of a cluster: this manager had not joined yet")]
    Empty(PathBuf),
    #[error("raft data can't be decrypted: wrong key")]
    WrongKey,
    /// A record is torn, flipped, or not where it belongs. Nothing of it is served.
    /// Cure: remove this manager from the swarm, and let it join anew.
    #[error("raft data is corrupt: {0}")]
    Corrupt(String),
    /// It is as it was sealed, and says something that this version does not understand.
    #[error("raft data was written by another version of meshd: {0}")]
    OtherVersion(String),
    #[error("raft data belongs to raft id {0}, not to {1}")]
    OtherId(u64, u64),
    #[error("raft data can't be read or written")]
    Io(#[from] io::Error),
    #[error("raft log can't be opened")]
    Log(#[from] redb::Error),
    #[error("raft can't start: {0}")]
    Raft(String),
}

/// Why a change of the members did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("{0}")]
    NoLeader(String),
    /// This manager does not lead; ask the one at the address.
    #[error("this manager is not the leader")]
    NotLeader(Option<SocketAddr>),
    /// swarmkit's `ErrCannotRemoveMember`.
    #[error("raft: member cannot be removed, because removing it may result in loss of quorum")]
    WouldLoseQuorum,
    /// swarmkit's `ErrMemberUnknown`.
    #[error("raft: member unknown")]
    UnknownMember,
    /// For moments: ask again.
    #[error("the managers are changing already")]
    Changing,
    #[error("raft member {0} can't be reached at {1}")]
    Unreachable(u64, SocketAddr),
    #[error("raft id {0} belongs to another node")]
    OtherNode(u64),
    #[error("this node is not a swarm manager")]
    NotManager,
    #[error("{0}")]
    Failed(String),
}

/// Why this node did not become a voter.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{0}")]
    Refused(String),
    /// Ask again.
    #[error("this manager is still being sent what the others have")]
    Learning,
    #[error("{0}")]
    NoLeader(String),
}
