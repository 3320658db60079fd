//! API versions: `/v1.44/…` is taken off the path before routing; requests without one speak the newest.

use std::fmt;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::Uri;

use crate::error::ApiError;

/// A version of Docker's API, `1.minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u32);

/// The newest that is spoken: that of Docker 28.2.
pub const MAX_API_VERSION: ApiVersion = ApiVersion(50);
/// The oldest: clients in the field ask for it by name.
pub const MIN_API_VERSION: ApiVersion = ApiVersion(24);

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.0)
    }
}

/// Takes the version off the path and leaves it as an extension of the request.
pub async fn negotiate(mut request: Request, next: Next) -> Response {
    if !is_text(request.uri().path()) {
        return ApiError::invalid("invalid path: it is not UTF-8").into_response();
    }
    let mut version = MAX_API_VERSION;
    if let Some((asked, rest)) = split(request.uri().path()) {
        match check(asked) {
            Ok(known) => version = known,
            Err(error) => return error.into_response(),
        }
        let path = request.uri().query().map_or_else(|| rest.to_owned(), |query| format!("{rest}?{query}"));
        let Ok(uri) = path.parse::<Uri>() else {
            return ApiError::not_found("page not found").into_response();
        };
        *request.uri_mut() = uri;
    }
    request.extensions_mut().insert(version);
    next.run(request).await
}

/// Whether the path is UTF-8 once its `%XX` are decoded: ids and names are.
fn is_text(path: &str) -> bool {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let byte = (first == b'%').then(|| tail.get(..2)).flatten();
        let byte = byte.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        decoded.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    std::str::from_utf8(&decoded).is_ok()
}

/// The version's text (`1.44`) and the path behind it, if the path begins with one: `v[0-9.]+/…`.
fn split(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v")?;
    let end = rest.find('/')?;
    let (version, path) = rest.split_at(end);
    let is_version = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    is_version.then_some((version, path))
}

fn check(asked: &str) -> Result<ApiVersion, ApiError> {
    let mut numbers = asked.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let pair = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if pair < (1, MIN_API_VERSION.0) {
        return Err(ApiError::invalid(format!(
            "client version {asked} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade \
             your client to a newer version"
        )));
    }
    if pair > (1, MAX_API_VERSION.0) {
        return Err(ApiError::invalid(format!(
            "client version {asked} is too new. Maximum supported API version is {MAX_API_VERSION}"
        )));
    }
    Ok(ApiVersion(pair.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_version_off() {
        assert_eq!(split("/v1.44/nodes"), Some(("1.44", "/nodes")));
        assert_eq!(split("/volumes"), None);
        assert_eq!(split("/v1.44"), None);
        assert_eq!(split("/nodes"), None);
    }

    #[test]
    fn tells_text_from_other_bytes() {
        for (path, expected) in [
            ("/nodes/ü", true),
            ("/a%C3%BC", true),
            ("/a%ff", false),
            ("/a%", true),
            ("/%zz%2", true),
            ("/%+1", true),
        ] {
            assert_eq!(is_text(path), expected, "{path}");
        }
    }

    #[test]
    fn refuses_versions_out_of_range() {
        assert_eq!(check("1.24"), Ok(ApiVersion(24)));
        assert_eq!(check("1.50"), Ok(MAX_API_VERSION));
        assert!(
            check("1.12").expect_err("old").message.starts_with("client version 1.12 is too old. Minimum")
        );
        assert!(
            check("1.99").expect_err("new").message.starts_with("client version 1.99 is too new. Maximum")
        );
        assert!(check("2.0").is_err());
        assert!(check("99999999999999999999").is_err());
    }
}
