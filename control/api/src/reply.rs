//! Replies that succeed.

use std::iter;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::{StatusCode, header};
use serde::Serialize;

use crate::error::ApiError;

/// A list goes out in pieces of about so many bytes.
const PIECE_BYTES: usize = 64 << 10;
const JSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];

/// What a handler returns.
pub type Reply = Result<Response, ApiError>;

/// `value` as JSON, ended by a line feed as Go ends it.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    let mut body = serde_json::to_vec(value).map_err(|error| failed(&error))?;
    body.push(b'\n');
    Ok((status, JSON, body).into_response())
}

/// 200 and `value`.
pub fn ok<T: Serialize>(value: &T) -> Reply {
    json(StatusCode::OK, value)
}

/// 200 and a list. An item is made when its piece goes out, so that a list of ten thousand tasks takes no more memory than
/// a short one.
pub fn list<T: Serialize>(items: impl Iterator<Item = T> + Send + 'static) -> Reply {
    let mut pieces = Pieces { items, is_begun: false, is_ended: false };
    let first = pieces.next().transpose().map_err(|error| failed(&error))?.unwrap_or_default();
    if pieces.is_ended {
        return Ok((JSON, first).into_response());
    }
    let all = iter::once(Ok(first)).chain(pieces);
    Ok((JSON, Body::from_stream(stream::iter(all))).into_response())
}

/// A JSON array as text, in pieces.
struct Pieces<I> {
    items: I,
    is_begun: bool,
    is_ended: bool,
}

impl<T: Serialize, I: Iterator<Item = T>> Iterator for Pieces<I> {
    type Item = Result<Vec<u8>, serde_json::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_ended {
            return None;
        }
        let mut piece = Vec::new();
        while piece.len() < PIECE_BYTES {
            let Some(item) = self.items.next() else {
                piece.extend_from_slice(if self.is_begun { b"]\n" } else { b"[]\n" });
                self.is_ended = true;
                break;
            };
            piece.push(if self.is_begun { b',' } else { b'[' });
            self.is_begun = true;
            if let Err(error) = serde_json::to_writer(&mut piece, &item) {
                self.is_ended = true;
                return Some(Err(error));
            }
        }
        Some(Ok(piece))
    }
}

fn failed(error: &serde_json::Error) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// 200 without a body.
#[expect(clippy::unnecessary_wraps, reason = "a handler's last word, as the others are")]
pub fn done() -> Reply {
    Ok(StatusCode::OK.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(n: usize) -> Vec<Vec<u8>> {
        let items = (0..n).map(|number| format!("{number:0>100}"));
        Pieces { items, is_begun: false, is_ended: false }.map(Result::unwrap).collect()
    }

    #[test]
    fn pieces_are_one_array() {
        for n in [0, 1, 2, 5_000] {
            let text = pieces(n).concat();
            assert!(text.ends_with(b"]\n"), "{n}");
            assert_eq!(serde_json::from_slice::<Vec<String>>(&text).unwrap().len(), n);
        }
    }

    #[test]
    fn no_piece_is_much_longer_than_it_should_be() {
        let pieces = pieces(5_000);
        assert!(pieces.len() > 5, "{}", pieces.len());
        assert!(pieces.iter().all(|piece| piece.len() < PIECE_BYTES + 200));
    }

    #[test]
    fn an_item_that_has_no_json_ends_the_list() {
        let items = [std::collections::BTreeMap::from([(vec![0_u8], 0)])].into_iter();
        let mut pieces = Pieces { items, is_begun: false, is_ended: false };
        assert!(pieces.next().unwrap().is_err());
        assert!(pieces.next().is_none());
    }
}
