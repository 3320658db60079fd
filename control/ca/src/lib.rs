//! The cluster's certificate authority: root, join tokens, node certificates.
//!
//! Values in, values out: the time is given, files and connections are the callers'. Only keys come from the
//! provider's generator.
#![forbid(unsafe_code)]

mod certificate;
mod former;
mod request;
mod root;
mod token;
mod unlock_key;

pub use certificate::{Certificate, CertificateError, key_digest, node_tls, root_digest};
pub use former::{FormerError, check_former, prove_former};
pub use request::{NodeKey, RequestError};
pub use root::{IssueError, MIN_CERTIFICATE_LIFE, RootCa, RootError, UserRootError};
pub use token::{InvalidToken, JoinToken, TokenRefused, WrongRoot, role_of_token};
pub use unlock_key::{InvalidUnlockKey, parse_unlock_key, unlock_key_text};

#[cfg(test)]
mod tests;
