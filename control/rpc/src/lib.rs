//! The cluster's RPC: generated messages, their MessagePack bodies, and mutual TLS for both ends.
#![forbid(unsafe_code)]

/// Generated from `proto/mesh.proto`.
#[expect(clippy::pedantic, clippy::allow_attributes, reason = "generated code")]
pub mod pb {
    tonic::include_proto!("mesh.v1");
}
