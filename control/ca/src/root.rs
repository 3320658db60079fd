//! The root: makes itself once per cluster, and signs node certificates.

use std::time::Duration;

use control_model::identity::CERTIFICATE_BACKDATE;
use control_model::{PeerIdentity, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use crate::certificate::{pem_of, public_key_of, single_der};

/// swarmkit's `ca.rootCN`.
const ROOT_NAME: &str = "swarm-ca";
/// swarmkit's `ca.RootCAExpiration`: 20 years.
const ROOT_LIFE: Duration = Duration::from_hours(20 * 365 * 24);
/// Shortest life that may be asked for (swarmkit's `ca.MinNodeCertExpiration`).
pub const MIN_CERTIFICATE_LIFE: Duration = Duration::from_hours(1);
/// Bytes of a serial number: RFC 5280 §4.1.2.2 allows 20.
const SERIAL_LEN: usize = 16;
/// Certificate requests larger than this are refused unread; a P-256 request has about 400 bytes.
const MAX_CSR_BYTES: usize = 16 << 10;

/// The root can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("root key can't be made or read")]
    Key(#[source] rcgen::Error),
    #[error("root certificate can't be made or read")]
    Certificate(#[source] rcgen::Error),
    #[error("not one PEM certificate")]
    Malformed,
    #[error("certificate key mismatch")]
    KeyMismatch,
}

/// No certificate for this request.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Unreadable, or its signature does not prove possession of the key.
    #[error("invalid certificate signing request")]
    BadRequest(#[source] rcgen::Error),
    #[error("certificate signing request is larger than {MAX_CSR_BYTES} bytes")]
    RequestTooLarge,
    #[error("certificate signing request must be for an ECDSA P-256 key")]
    KeyType,
    #[error("minimum certificate expiry is {} seconds", MIN_CERTIFICATE_LIFE.as_secs())]
    LifeTooShort,
    #[error("certificate can't be signed")]
    Sign(#[source] rcgen::Error),
}

/// A root that a user gives must have this long to go (swarmkit's `minRootExpiration`).
const MIN_ROOT_LIFE: Duration = Duration::from_hours(365 * 24);

/// A user's root can't be the cluster's. The words are swarmkit's where it has any.
#[derive(Debug, thiserror::Error)]
pub enum UserRootError {
    #[error("the desired CA certificate cannot contain multiple certificates")]
    Several,
    #[error("could not parse the desired CA certificate")]
    Malformed,
    #[error("the desired CA certificate is not that of a certificate authority")]
    NoAuthority,
    #[error("CA certificate expires too soon")]
    TooOld,
    #[error("the desired CA key can't be used: it must be an ECDSA or RSA key in PKCS #8")]
    Key,
    #[error("certificate key mismatch")]
    KeyMismatch,
    #[error(
        "the desired CA certificate can't be signed by the present one: its subject is not of a plain form"
    )]
    Subject,
}

/// A root certificate with its key.
pub struct RootCa {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl RootCa {
    /// A new root: ECDSA P-256, valid for 20 years.
    pub fn generate(now: Timestamp) -> Result<Self, RootError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(RootError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, ROOT_NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial(key.public_key_raw(), now));
        params.not_before = date(before(now, CERTIFICATE_BACKDATE));
        params.not_after = date(now.after(ROOT_LIFE));
        let cert_pem = params.self_signed(&key).map_err(RootError::Certificate)?.pem();
        Ok(Self { cert_pem, issuer: Issuer::new(params, key) })
    }

    /// The root that [`RootCa::cert_pem`] and [`RootCa::key_pem`] gave.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, RootError> {
        let key = KeyPair::from_pem(key_pem).map_err(RootError::Key)?;
        let der = single_der(cert_pem).ok_or(RootError::Malformed)?;
        if public_key_of(&der).ok_or(RootError::Malformed)? != key.public_key_raw() {
            return Err(RootError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(RootError::Certificate)?;
        Ok(Self { cert_pem: cert_pem.to_owned(), issuer })
    }

    /// The root that a user gives, as the next of a cluster.
    pub fn from_user(cert_pem: &str, key_pem: &str, now: Timestamp) -> Result<Self, UserRootError> {
        let ders: Vec<_> = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| UserRootError::Malformed)?;
        let [der] = ders.as_slice() else {
            return Err(if ders.is_empty() { UserRootError::Malformed } else { UserRootError::Several });
        };
        let (_, parsed) = X509Certificate::from_der(der).map_err(|_| UserRootError::Malformed)?;
        if !parsed.is_ca() {
            return Err(UserRootError::NoAuthority);
        }
        let end = Timestamp(parsed.validity().not_after.timestamp().saturating_mul(1_000_000_000));
        if end < now.after(MIN_ROOT_LIFE) {
            return Err(UserRootError::TooOld);
        }
        Self::from_pem(&pem_of(der), key_pem).map_err(|error| match error {
            RootError::KeyMismatch => UserRootError::KeyMismatch,
            RootError::Key(_) => UserRootError::Key,
            RootError::Certificate(_) | RootError::Malformed => UserRootError::Malformed,
        })
    }

    /// The certificate of `next`, signed by this root (PEM): who trusts this root believes what `next` signs.
    pub fn cross_sign(&self, next: &Self, now: Timestamp) -> Result<String, UserRootError> {
        let der = single_der(&next.cert_pem).ok_or(UserRootError::Malformed)?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| UserRootError::Malformed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = plain_name(parsed.subject()).ok_or(UserRootError::Subject)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial(next.issuer.key().public_key_raw(), now));
        params.not_before = date(before(now, CERTIFICATE_BACKDATE));
        params.not_after = parsed.validity().not_after.to_datetime();
        let signed = params.signed_by(next.issuer.key(), &self.issuer).map_err(|_| UserRootError::Subject)?;
        // What comes after it in a chain names its issuer byte for byte.
        let (_, copy) = X509Certificate::from_der(signed.der()).map_err(|_| UserRootError::Subject)?;
        if copy.subject().as_raw() != parsed.subject().as_raw() {
            return Err(UserRootError::Subject);
        }
        Ok(signed.pem())
    }

    /// Does `other` sign with the same key?
    pub fn has_key_of(&self, other: &Self) -> bool {
        self.issuer.key().public_key_raw() == other.issuer.key().public_key_raw()
    }

    /// The certificate: what join tokens are digests of.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The key: secret, kept in the encrypted log alone.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate (PEM) for the key of `csr_pem`, valid from an hour ago until `life` from now.
    /// Only the key is taken from the request: the CA chooses subject, names and usages.
    pub fn issue(
        &self,
        csr_pem: &str,
        identity: PeerIdentity,
        now: Timestamp,
        life: Duration,
    ) -> Result<String, IssueError> {
        if csr_pem.len() > MAX_CSR_BYTES {
            return Err(IssueError::RequestTooLarge);
        }
        if life < MIN_CERTIFICATE_LIFE {
            return Err(IssueError::LifeTooShort);
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(IssueError::BadRequest)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(IssueError::KeyType);
        }
        let mut params = node_params(identity).map_err(IssueError::Sign)?;
        params.serial_number = Some(serial(request.public_key.der_bytes(), now));
        params.not_before = date(before(now, CERTIFICATE_BACKDATE));
        params.not_after = date(now.after(life));
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(IssueError::Sign)?;
        Ok(certificate.pem())
    }
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa").finish_non_exhaustive()
    }
}

/// A name whose parts are texts, one of each kind. `None` of any other.
fn plain_name(name: &X509Name<'_>) -> Option<DistinguishedName> {
    let mut plain = DistinguishedName::new();
    for part in name.iter() {
        let mut attributes = part.iter();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else { return None };
        let kind = DnType::from_oid(&attribute.attr_type().iter()?.collect::<Vec<_>>());
        if plain.get(&kind).is_some() {
            return None;
        }
        let text = std::str::from_utf8(attribute.attr_value().data).ok()?;
        let value = match attribute.attr_value().header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().ok()?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().ok()?),
            _ => return None,
        };
        plain.push(kind, value);
    }
    Some(plain)
}

fn node_params(identity: PeerIdentity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, identity.cluster_id.to_string());
    params.distinguished_name.push(DnType::OrganizationalUnitName, identity.unit());
    params.distinguished_name.push(DnType::CommonName, identity.node_id.to_string());
    params.subject_alt_names = vec![
        SanType::DnsName(identity.unit().try_into()?),
        SanType::DnsName(identity.node_id.to_string().try_into()?),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Unique per key and moment: no randomness needed. The top bit is clear, for serials are positive.
fn serial(public_key: &[u8], now: Timestamp) -> SerialNumber {
    let digest = Sha256::new_with_prefix(public_key).chain_update(now.0.to_be_bytes()).finalize();
    let mut bytes: [u8; SERIAL_LEN] = std::array::from_fn(|i| digest[i]);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(span.as_nanos()).expect("the back-date is an hour")))
}

/// Whole seconds: certificates hold no fractions.
fn date(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.0.div_euclid(1_000_000_000))
        .expect("64-bit nanoseconds end in the year 2262")
}
