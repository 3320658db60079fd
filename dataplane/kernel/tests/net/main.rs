//! Everything of a node's network but the programs, in namespaces of their own. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod converge;
mod ipv6;
mod support;
mod way_out6;
