//! The API's JSON shapes, Docker's (moby `api/types`): order, names, and what is left out when empty.
//!
//! Requests are decoded leniently, as Go decodes them: an absent key and `null` are the zero value. Keys that are
//! not known here end up in `rest`, and are refused by the conversion unless they are empty.

pub mod common;
pub mod container;
pub mod create;
pub mod dependency;
pub mod disk;
pub mod events;
pub mod exec;
pub mod image;
pub mod network;
pub mod node;
pub mod service;
pub mod stats;
pub mod swarm;
pub mod system;
pub mod task;
pub mod volume;
