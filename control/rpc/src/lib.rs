//! The cluster's RPC: generated messages, their MessagePack bodies, and mutual TLS for both ends.
#![forbid(unsafe_code)]

use std::time::Duration;

mod anonymous;
mod assignments;
mod body;
mod channels;
mod digest;
mod door;
mod identity;
mod peer;
mod server;

pub use anonymous::{JoinError, anonymous_channel, join_channel};
pub use assignments::{AssignmentPieces, assignment_pieces};
pub use body::{
    BodyError, MAX_BODY_BYTES, decode, decode_assignments, encode, encode_assignments, encoded_len,
};
pub use channels::Channels;
pub use control_model::identity::PeerIdentity;
pub use digest::digest;
pub use door::{Counted, Place};
pub use identity::{Identity, IdentityError, IdentityPem};
pub use peer::{ConnectInfo, certificate_issued, peer, require_manager, require_node};
pub use server::{ServeError, serve};

/// Generated from `proto/mesh.proto`.
#[expect(
    unused_qualifications,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod pb {
    tonic::include_proto!("mesh.v1");
}

/// Largest gRPC message between nodes that have certificates. Four times the largest entry and its frame, so that a
/// batch of entries fits; longer things are streamed. tonic's own default is 4 MiB: give this to
/// `max_decoding_message_size` of every generated server and client but the CA's and the dispatcher's client.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Largest update from a dispatcher to its agent. A node's complete set is one update, for it replaces the set before as a whole:
/// a row of some 300 bytes for each backend that the node may send to, and the bytes of its secrets and configs, of which a
/// cluster has 256 MiB at the most. This is room for all of these and 800,000 backends. Only managers, who are trusted, send as
/// much.
pub const MAX_ASSIGNMENTS_BYTES: usize = 512 << 20;
/// It is sent in pieces of this length, between which other calls have their turn. A stream keeps room for the longest message that
/// it has sent, and a manager has a stream for each node.
const ASSIGNMENT_PIECE_BYTES: usize = 16 << 10;

/// Longest question about a node: a path with a few names in it.
pub const MAX_QUESTION_LEN: usize = 2048;
/// The same of one that is answered at length: how far each of a thousand tasks' output was read may be in it. A URI has 64 KiB.
pub const MAX_LONG_QUESTION_LEN: usize = 60 << 10;
/// Questions to one node that are under way at a time. They are a person's, or a script's: more are refused.
pub const MAX_QUESTIONS: usize = 16;
/// Long answers of one node that are under way at a time.
pub const MAX_LONG_ANSWERS: usize = 120;
/// The longest that a question may take: a comparison of all of a large node's tables.
pub const MAX_QUESTION_TIME: Duration = Duration::from_mins(1);

/// Largest message on the CA service, which callers without a certificate may use: a CSR, a token, two PEMs.
pub const MAX_CA_MESSAGE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests;
