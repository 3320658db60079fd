//! The Docker Engine HTTP API over a node.
