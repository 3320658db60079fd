//! Request bodies in JSON, with the checks and words of moby `daemon/server/httputils`; and what no handler reads.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::middleware::Next;
use axum::response::Response;
use control_manager::control::ControlError;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::dto::common::strip_nulls;
use crate::error::ApiError;
use crate::names;
use crate::syntax::first_error;

/// Largest JSON body: more than consensus takes in one entry, so that its own limit speaks first.
pub const MAX_JSON_BYTES: usize = 4 << 20;
/// How much of a body that is too large is read before the connection is given up.
const MAX_DRAINED_BYTES: usize = 64 << 20;

/// A decoded body. No body at all is the zero value.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Default, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_content_type(&parts.headers)?;
        check_declared_length(&parts.headers)?;
        let bytes = read(body).await?;
        decode(&bytes).map(Self)
    }
}

/// The whole body. What is over the limit is read and dropped, so that the client gets to read the reply.
async fn read(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::invalid(format!("error reading the request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length > MAX_DRAINED_BYTES {
            break;
        }
        if length <= MAX_JSON_BYTES {
            bytes.extend_from_slice(&data);
        }
    }
    // Docker's words and status for a spec that is too large for its log.
    if length > MAX_JSON_BYTES { Err(ControlError::TooLarge.into()) } else { Ok(bytes) }
}

/// Reads what the handler left of the body before the reply goes out: a connection that is closed under a client that
/// still writes costs it the reply (its write fails first). A handler that replies while it reads keeps its body.
pub async fn drain(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let worth_reading = check_declared_length(&parts.headers).is_ok();
    let (back, mut left) = oneshot::channel();
    let lent = Body::new(Lent { body, back: Some(back) });
    let reply = next.run(Request::from_parts(parts, lent)).await;
    if let (true, Ok(mut body)) = (worth_reading, left.try_recv()) {
        let mut length = 0_usize;
        while length <= MAX_DRAINED_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            length = length.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        }
    }
    reply
}

/// A body that goes back to its owner when it is dropped.
struct Lent {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            // The owner may have gone: the client did.
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}

/// A body that says it is larger than what would be drained is answered at once: waiting for it would only hold the
/// connection.
fn check_declared_length(headers: &HeaderMap) -> Result<(), ApiError> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > MAX_DRAINED_BYTES) {
        Err(ControlError::TooLarge.into())
    } else {
        Ok(())
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        let empty = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0")
            && !headers.contains_key(http::header::TRANSFER_ENCODING);
        return if empty {
            Ok(())
        } else {
            Err(ApiError::invalid("malformed Content-Type header (): mime: no media type"))
        };
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    let media_type = text.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::invalid(format!("unsupported Content-Type header ({text}): must be 'application/json'")))
}

/// The value that `bytes` hold; no bytes are the zero value, `null` is absence.
pub fn decode<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Ok(T::default());
    }
    let invalid = |what: &dyn std::fmt::Display| ApiError::invalid(format!("invalid JSON: {what}"));
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    let mut value = match values.next() {
        None => return Err(invalid(&"got EOF while reading request body")),
        Some(Err(error)) if error.is_eof() => return Err(invalid(&"unexpected EOF")),
        Some(Err(error)) => return Err(invalid(&first_error(bytes).unwrap_or_else(|| error.to_string()))),
        Some(Ok(value)) => value,
    };
    if !bytes[values.byte_offset()..].trim_ascii().is_empty() {
        return Err(ApiError::invalid("unexpected content after JSON"));
    }
    if value.is_null() {
        return Ok(T::default());
    }
    strip_nulls(&mut value);
    names::read(value).map_err(|error| invalid(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dto::service::ServiceSpec;

    fn refusal(bytes: &[u8]) -> String {
        decode::<ServiceSpec>(bytes).expect_err("malformed").message
    }

    #[test]
    fn absent_and_null_are_zero() {
        assert_eq!(decode::<ServiceSpec>(b"").expect("nothing"), ServiceSpec::default());
        assert_eq!(decode::<ServiceSpec>(b"null").expect("null"), ServiceSpec::default());
        let spec: ServiceSpec = decode(br#"{"Name":"x","Labels":null,"TaskTemplate":null}"#).expect("nulls");
        assert_eq!(spec, ServiceSpec { name: "x".into(), ..ServiceSpec::default() });
    }

    #[test]
    fn malformed_bodies_are_named() {
        assert_eq!(refusal(b"  "), "invalid JSON: got EOF while reading request body");
        assert_eq!(refusal(br#"{"Name":"#), "invalid JSON: unexpected EOF");
        assert_eq!(refusal(br"{} {}"), "unexpected content after JSON");
        assert_eq!(
            refusal(b"{nope}"),
            "invalid JSON: invalid character 'n' looking for beginning of object key string"
        );
        assert!(refusal(br#"{"Name":5}"#).starts_with("invalid JSON: invalid type: integer"));
    }
}
