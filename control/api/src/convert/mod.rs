//! Between the API's shapes and the model: defaults in, defaults out, and a clear refusal of what can't be done.

pub mod cluster;
pub mod dependency;
pub mod generic;
pub mod network;
pub mod node;
pub mod service;
pub mod spec_in;
pub mod spec_out;
pub mod standalone;
pub mod task;
pub mod words;

#[cfg(test)]
mod tests;

use std::time::Duration;

use control_model::validate::SpecError;

use crate::dto::common::{Rest, is_empty};
use crate::error::ApiError;

/// Refuses the first key that says something and that nothing here understands.
pub fn refuse_unknown(rest: &Rest, place: &str) -> Result<(), ApiError> {
    match rest.iter().find(|(_, value)| !is_empty(value)) {
        Some((key, _)) => Err(ApiError::unsupported(format!("{place}.{key}"))),
        None => Ok(()),
    }
}

/// A span of `nanoseconds` that must not be negative.
pub fn span(nanoseconds: i64, what: &'static str) -> Result<Duration, ApiError> {
    let nanoseconds = u64::try_from(nanoseconds).map_err(|_| SpecError::NegativeDuration(what))?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// The span in nanoseconds, as Go has it.
pub fn nanoseconds(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}
