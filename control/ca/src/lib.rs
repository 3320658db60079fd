//! The cluster's certificate authority: root, join tokens, node certificates.
//!
//! Values in, values out: the time is given, files and connections are the callers'. Only keys come from the
//! provider's generator.
#![forbid(unsafe_code)]

mod certificate;
mod request;
mod root;
mod token;

pub use certificate::{Certificate, CertificateError};
pub use request::{NodeKey, RequestError};
pub use root::{IssueError, MIN_CERTIFICATE_LIFE, RootCa, RootError};
pub use token::{InvalidToken, JoinToken, TokenRefused, WrongRoot, role_of_token};

#[cfg(test)]
mod tests;
