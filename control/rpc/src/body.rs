//! MessagePack bodies of `bytes` fields: model types, with named fields so that one added later is no break.

use std::io;

use control_model::AssignmentUpdate;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{MAX_ASSIGNMENTS_BYTES, MAX_MESSAGE_BYTES};

/// Largest body: what fits into a message beside its other fields.
pub const MAX_BODY_BYTES: usize = MAX_MESSAGE_BYTES - 1024;
/// The same on the assignments stream.
const MAX_ASSIGNMENT_BODY_BYTES: usize = MAX_ASSIGNMENTS_BYTES - 1024;

/// A body can't be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("message body of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("malformed message body")]
    Malformed(#[from] rmp_serde::decode::Error),
    #[error("message body can't be encoded")]
    Unencodable(#[from] rmp_serde::encode::Error),
}

impl From<BodyError> for tonic::Status {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge { .. } => Self::resource_exhausted(error.to_string()),
            BodyError::Malformed(_) => Self::invalid_argument(error.to_string()),
            BodyError::Unencodable(_) => Self::internal(error.to_string()),
        }
    }
}

/// `value` as a body.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, BodyError> {
    encode_within(MAX_BODY_BYTES, value)
}

/// `update` as a body on the assignments stream alone, which takes up to [`MAX_ASSIGNMENTS_BYTES`].
pub fn encode_assignments(update: &AssignmentUpdate) -> Result<Vec<u8>, BodyError> {
    encode_within(MAX_ASSIGNMENT_BODY_BYTES, update)
}

/// Bytes that `value` takes as a body; more than any body where it can't be encoded.
pub fn encoded_len<T: Serialize>(value: &T) -> usize {
    let mut counter = Counter(0);
    rmp_serde::encode::write_named(&mut counter, value).map_or(usize::MAX, |()| counter.0)
}

/// Takes bytes and keeps their number.
struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The value of a body from outside. Never panics.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BodyError> {
    decode_within(MAX_BODY_BYTES, body)
}

/// The update of a body on the assignments stream. Never panics.
pub fn decode_assignments(body: &[u8]) -> Result<AssignmentUpdate, BodyError> {
    decode_within(MAX_ASSIGNMENT_BODY_BYTES, body)
}

fn encode_within<T: Serialize>(limit: usize, value: &T) -> Result<Vec<u8>, BodyError> {
    let body = rmp_serde::to_vec_named(value)?;
    check_len(limit, &body)?;
    Ok(body)
}

fn decode_within<T: DeserializeOwned>(limit: usize, body: &[u8]) -> Result<T, BodyError> {
    check_len(limit, body)?;
    Ok(rmp_serde::from_slice(body)?)
}

fn check_len(limit: usize, body: &[u8]) -> Result<(), BodyError> {
    let bytes = body.len();
    if bytes > limit { Err(BodyError::TooLarge { bytes, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_as_long_as_it_is_said_to_be() {
        let value = (70_000_u64, "text".to_owned(), vec![1_u8; 300]);
        assert_eq!(encoded_len(&value), encode(&value).unwrap().len());
    }

    #[test]
    fn bodies_return_as_they_were() {
        let value = (7_u64, "text".to_owned(), vec![1_u8, 2]);
        assert_eq!(decode::<(u64, String, Vec<u8>)>(&encode(&value).unwrap()).unwrap(), value);
    }

    #[test]
    fn large_and_broken_bodies_are_refused() {
        let large = vec![0_u8; MAX_BODY_BYTES + 1];
        assert!(matches!(encode(&large), Err(BodyError::TooLarge { .. })));
        assert!(matches!(decode::<u64>(&large), Err(BodyError::TooLarge { .. })));
        let larger = vec![0_u8; MAX_ASSIGNMENT_BODY_BYTES + 1];
        assert!(matches!(decode_assignments(&large), Err(BodyError::Malformed(_))));
        assert!(matches!(decode_assignments(&larger), Err(BodyError::TooLarge { .. })));
        assert!(matches!(decode::<String>(&[0xdb, 0xff, 0xff, 0xff, 0xff]), Err(BodyError::Malformed(_))));
        assert!(matches!(decode::<u64>(&[]), Err(BodyError::Malformed(_))));
    }
}
