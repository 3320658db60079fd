//! MessagePack bodies of `bytes` fields: model types, with named fields so that one added later is no break.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::MAX_MESSAGE_BYTES;

/// Largest body: what fits into a message beside its other fields.
pub const MAX_BODY_BYTES: usize = MAX_MESSAGE_BYTES - 1024;

/// A body can't be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("message body of {0} bytes is larger than the limit of {MAX_BODY_BYTES}")]
    TooLarge(usize),
    #[error("malformed message body")]
    Malformed(#[from] rmp_serde::decode::Error),
    #[error("message body can't be encoded")]
    Unencodable(#[from] rmp_serde::encode::Error),
}

impl From<BodyError> for tonic::Status {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge(_) => Self::resource_exhausted(error.to_string()),
            BodyError::Malformed(_) => Self::invalid_argument(error.to_string()),
            BodyError::Unencodable(_) => Self::internal(error.to_string()),
        }
    }
}

/// `value` as a body.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, BodyError> {
    let body = rmp_serde::to_vec_named(value)?;
    if body.len() > MAX_BODY_BYTES { Err(BodyError::TooLarge(body.len())) } else { Ok(body) }
}

/// The value of a body from outside. Never panics.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BodyError> {
    if body.len() > MAX_BODY_BYTES {
        return Err(BodyError::TooLarge(body.len()));
    }
    Ok(rmp_serde::from_slice(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_return_as_they_were() {
        let value = (7_u64, "text".to_owned(), vec![1_u8, 2]);
        assert_eq!(decode::<(u64, String, Vec<u8>)>(&encode(&value).unwrap()).unwrap(), value);
    }

    #[test]
    fn large_and_broken_bodies_are_refused() {
        let large = vec![0_u8; MAX_BODY_BYTES + 1];
        assert!(matches!(encode(&large), Err(BodyError::TooLarge(_))));
        assert!(matches!(decode::<u64>(&large), Err(BodyError::TooLarge(_))));
        assert!(matches!(decode::<String>(&[0xdb, 0xff, 0xff, 0xff, 0xff]), Err(BodyError::Malformed(_))));
        assert!(matches!(decode::<u64>(&[]), Err(BodyError::Malformed(_))));
    }
}
