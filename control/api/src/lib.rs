//! The Docker Engine HTTP API over a [`Node`].

pub mod engine;
pub mod node;

pub use engine::Engine;
pub use node::Node;
