//! The cluster's RPC: generated messages, their MessagePack bodies, and mutual TLS for both ends.
#![forbid(unsafe_code)]

mod anonymous;
mod body;
mod channels;
mod identity;
mod peer;
mod server;

pub use anonymous::{JoinError, anonymous_channel, join_channel};
pub use body::{BodyError, MAX_BODY_BYTES, decode, encode};
pub use channels::Channels;
pub use control_model::identity::PeerIdentity;
pub use identity::{Identity, IdentityError, IdentityPem};
pub use peer::{ConnectInfo, peer, require_manager, require_node};
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
/// batch of entries or a large assignment set fits; longer things are streamed. tonic's own default is 4 MiB:
/// give this to `max_decoding_message_size` of every generated server and client but the CA's.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Largest message on the CA service, which callers without a certificate may use: a CSR, a token, two PEMs.
pub const MAX_CA_MESSAGE_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests;
