//! Who is at the other end of a request.

use std::net::SocketAddr;
use std::time::Duration;

use control_model::Timestamp;
use control_model::identity::{CERTIFICATE_BACKDATE, ParseIdentityError, PeerIdentity};
use control_model::spec::Role;
use rustls_pki_types::CertificateDer;
use tonic::{Request, Status};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

/// What a server knows of a connection; in the extensions of each of its requests.
#[derive(Debug, Clone, Copy)]
pub struct ConnectInfo {
    pub remote: SocketAddr,
    /// `None` for a caller without a certificate.
    pub peer: Option<PeerIdentity>,
    /// When its certificate was made, by the clock of the manager that made it.
    pub issued: Timestamp,
}

/// The connection on which the request came. `None` only where no [`crate::serve`] is below.
pub fn peer<T>(request: &Request<T>) -> Option<ConnectInfo> {
    request.extensions().get().copied()
}

/// The caller, who must hold a node certificate of this cluster.
pub fn require_node<T>(request: &Request<T>) -> Result<PeerIdentity, Status> {
    peer(request)
        .and_then(|info| info.peer)
        .ok_or_else(|| Status::unauthenticated("this call needs a node certificate"))
}

/// The caller, who must hold a manager certificate of this cluster.
pub fn require_manager<T>(request: &Request<T>) -> Result<PeerIdentity, Status> {
    let peer = require_node(request)?;
    match peer.role {
        Role::Manager => Ok(peer),
        Role::Worker => Err(Status::permission_denied("this call needs a manager certificate")),
    }
}

/// When the certificate with which the caller came was made; the beginning of time for a caller without one.
pub fn certificate_issued<T>(request: &Request<T>) -> Timestamp {
    peer(request).map_or(Timestamp(0), |info| info.issued)
}

/// The identity in a certificate's subject. The certificate's chain is not checked here.
pub(crate) fn identity_of(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, ParseIdentityError> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| ParseIdentityError)?;
    let subject = certificate.subject();
    PeerIdentity::from_subject(
        single(subject.iter_common_name())?,
        single(subject.iter_organizational_unit())?,
        single(subject.iter_organization())?,
    )
}

/// When a certificate was made; the beginning of time if it does not say so.
pub(crate) fn issued_of(certificate: &CertificateDer<'_>) -> Timestamp {
    let parsed = X509Certificate::from_der(certificate);
    let since = parsed.map_or(0, |(_, certificate)| certificate.validity().not_before.timestamp());
    let since = Duration::from_secs(since.try_into().unwrap_or_default());
    if since.is_zero() { Timestamp(0) } else { Timestamp(0).after(since + CERTIFICATE_BACKDATE) }
}

/// The one attribute of its kind: two would leave open which one counts.
fn single<'a>(
    mut attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<&'a str, ParseIdentityError> {
    match (attributes.next(), attributes.next()) {
        (Some(attribute), None) => attribute.as_str().map_err(|_| ParseIdentityError),
        _ => Err(ParseIdentityError),
    }
}
