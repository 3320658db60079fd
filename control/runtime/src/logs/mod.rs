//! Lines of containers on their way to a log server: how they look, and how they get there.

mod encode;
mod sink;

pub(crate) use encode::{Encoder, Origin};
pub(crate) use sink::Sink;
