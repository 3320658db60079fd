//! The node's side: a new key and the request for its certificate.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

/// No key or request could be made.
#[derive(Debug, thiserror::Error)]
#[error("can't make a certificate request")]
pub struct RequestError(#[from] rcgen::Error);

/// A node's key with the request to certify it. The key never leaves the node.
#[derive(Clone)]
pub struct NodeKey {
    /// PKCS #8 PEM; its file must be readable by root alone.
    pub key_pem: String,
    /// PEM, with an empty subject: the CA chooses it.
    pub csr_pem: String,
}

impl NodeKey {
    /// A new ECDSA P-256 key.
    pub fn generate() -> Result<Self, RequestError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr_pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem })
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}
