//! Raft by openraft: encrypted log and snapshots, transport, membership.
