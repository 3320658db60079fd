//! Reads and judges node certificates.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use control_model::authority::{KeyDigest, NodeTls};
use control_model::identity::ParseIdentityError;
use control_model::spec::Role;
use control_model::{PeerIdentity, Timestamp};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

/// Renewal is due at a random moment between these parts of a certificate's life (swarmkit's 50 and 80 %), so
/// that nodes that joined together don't renew together.
const RENEW_FROM_PERMILLE: u64 = 500;
const RENEW_SPAN_PERMILLE: u64 = 300;

/// Digits in a line of PEM (RFC 7468 section 2).
const PEM_LINE: usize = 64;

/// A certificate is not to be trusted, or not to be read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("malformed certificate")]
    Malformed,
    #[error(transparent)]
    Subject(#[from] ParseIdentityError),
    /// Foreign, forged, or outside of its validity.
    #[error("certificate refused")]
    Untrusted(#[source] rustls::Error),
    #[error("trusted roots can't be read")]
    Roots,
    #[error("certificate is that of a {0:?}")]
    WrongRole(Role),
}

/// What a node certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    pub identity: PeerIdentity,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Certificate {
    /// Reads the first certificate of a PEM without judging it.
    pub fn parse(pem: &str) -> Result<Self, CertificateError> {
        Self::from_der(&first_der(pem).ok_or(CertificateError::Malformed)?)
    }

    /// Reads the first certificate of `pem`, which must be valid at `now` and signed by one of `roots`, maybe by way of
    /// those that follow it.
    pub fn verify(pem: &str, roots: &str, now: Timestamp) -> Result<Self, CertificateError> {
        let mut chain = CertificateDer::pem_slice_iter(pem.as_bytes());
        let der = chain.next().and_then(Result::ok).ok_or(CertificateError::Malformed)?;
        let between: Vec<_> = chain.collect::<Result<_, _>>().map_err(|_| CertificateError::Malformed)?;
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            let root = root.map_err(|_| CertificateError::Roots)?;
            store.add(root).map_err(|_| CertificateError::Roots)?;
        }
        let provider = rustls::crypto::ring::default_provider().into();
        let verifier = WebPkiClientVerifier::builder_with_provider(store.into(), provider)
            .build()
            .map_err(|_| CertificateError::Roots)?;
        let seconds = u64::try_from(now.0).unwrap_or(0) / 1_000_000_000;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        verifier.verify_client_cert(&der, &between, at).map_err(CertificateError::Untrusted)?;
        Self::from_der(&der)
    }

    /// This certificate, if it is one of `role`.
    pub fn require(self, role: Role) -> Result<Self, CertificateError> {
        if self.identity.role == role {
            Ok(self)
        } else {
            Err(CertificateError::WrongRole(self.identity.role))
        }
    }

    /// When to renew: `random` picks a moment between 50 and 80 % of the certificate's life.
    pub fn renew_at(&self, random: u64) -> Timestamp {
        let permille = RENEW_FROM_PERMILLE + random % (RENEW_SPAN_PERMILLE + 1);
        let life = self.not_after.since(self.not_before);
        let part = life.as_nanos() * u128::from(permille) / 1000;
        self.not_before.after(Duration::from_nanos(u64::try_from(part).unwrap_or(u64::MAX)))
    }

    fn from_der(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        let subject = certificate.subject();
        let identity = PeerIdentity::from_subject(
            single(subject.iter_common_name())?,
            single(subject.iter_organizational_unit())?,
            single(subject.iter_organization())?,
        )?;
        let validity = certificate.validity();
        Ok(Self {
            identity,
            not_before: timestamp(validity.not_before.timestamp()),
            not_after: timestamp(validity.not_after.timestamp()),
        })
    }
}

fn single<'a>(
    mut attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<&'a str, ParseIdentityError> {
    match (attributes.next(), attributes.next()) {
        (Some(attribute), None) => attribute.as_str().map_err(|_| ParseIdentityError),
        _ => Err(ParseIdentityError),
    }
}

fn timestamp(unix_seconds: i64) -> Timestamp {
    Timestamp(unix_seconds.saturating_mul(1_000_000_000))
}

pub(crate) fn first_der(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).next()?.ok()
}

/// The certificate of a PEM that holds just one.
pub(crate) fn single_der(pem: &str) -> Option<CertificateDer<'static>> {
    let mut all = CertificateDer::pem_slice_iter(pem.as_bytes());
    match (all.next(), all.next()) {
        (Some(Ok(der)), None) => Some(der),
        _ => None,
    }
}

/// The bits of a certificate's public key.
pub(crate) fn public_key_of(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().subject_public_key.data.to_vec())
}

/// The certificate as PEM, in the one form that the cluster keeps.
pub(crate) fn pem_of(der: &CertificateDer<'_>) -> String {
    let digits = BASE64_STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in digits.as_bytes().chunks(PEM_LINE) {
        // Base 64 is ASCII: every byte is a digit.
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

/// The digest of a root, over its whole text.
pub fn root_digest(root_pem: &str) -> KeyDigest {
    Sha256::digest(root_pem.as_bytes()).into()
}

/// The digest of the public key of the first certificate in `pem`.
pub fn key_digest(pem: &str) -> Option<KeyDigest> {
    let der = first_der(pem)?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some(Sha256::digest(certificate.public_key().raw).into())
}

/// What a node with this chain says of itself. In chains of the cluster's authority the second certificate, if there is
/// one, is that of the signer.
pub fn node_tls(chain: &str, root_pem: &str) -> Option<NodeTls> {
    let signer = CertificateDer::pem_slice_iter(chain.as_bytes()).nth(1).and_then(Result::ok);
    let issuer = match signer {
        Some(der) => key_digest(&pem_of(&der))?,
        None => key_digest(root_pem)?,
    };
    Some(NodeTls { trust_root: root_digest(root_pem), issuer })
}
