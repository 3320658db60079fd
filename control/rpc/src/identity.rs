//! A node's own TLS identity: certificate, key and trusted roots, replaced at run time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use control_model::identity::PeerIdentity;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::peer::identity_of;

/// What an [`Identity`] is made of, as PEM.
#[derive(Clone)]
pub struct IdentityPem {
    /// The node's certificate, then intermediates, if any.
    pub certificate: String,
    /// Its key, PKCS #8 or SEC1.
    pub key: String,
    /// All roots to be trusted: more than one while the root is being rotated.
    pub roots: String,
}

impl std::fmt::Debug for IdentityPem {
    /// Keeps the key out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityPem").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Why PEMs are no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("unreadable PEM")]
    Pem(#[from] rustls_pki_types::pem::Error),
    #[error("no certificate in the PEM")]
    NoCertificate,
    #[error("certificate or key refused by TLS")]
    Tls(#[from] rustls::Error),
    #[error("no trusted root certificate")]
    Roots(#[from] rustls::server::VerifierBuilderError),
    #[error(transparent)]
    Subject(#[from] control_model::identity::ParseIdentityError),
}

/// A node's certificate, key and roots. All connections made after [`Identity::replace`] use the new ones.
#[derive(Debug)]
pub struct Identity {
    current: ArcSwap<Current>,
    version: AtomicU64,
}

#[derive(Debug)]
struct Current {
    me: PeerIdentity,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Identity {
    /// An identity from PEMs.
    pub fn new(pem: &IdentityPem) -> Result<Arc<Self>, IdentityError> {
        let current = ArcSwap::from_pointee(Current::new(pem)?);
        Ok(Arc::new(Self { current, version: AtomicU64::new(0) }))
    }

    /// Replaces everything at once. [`crate::Channels`] made before are made anew at their next use.
    /// Both configurations are new, so no TLS session from before can be resumed past the new roots.
    pub fn replace(&self, pem: &IdentityPem) -> Result<(), IdentityError> {
        self.current.store(Arc::new(Current::new(pem)?));
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Who this node is.
    pub fn me(&self) -> PeerIdentity {
        self.current.load().me
    }

    /// Changes with every [`Identity::replace`].
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        self.current.load().server.clone()
    }

    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        self.current.load().client.clone()
    }
}

impl Current {
    fn new(pem: &IdentityPem) -> Result<Self, IdentityError> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(pem.certificate.as_bytes()).collect::<Result<_, _>>()?;
        let me = identity_of(chain.first().ok_or(IdentityError::NoCertificate)?)?;
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes())?;
        let roots = Arc::new(read_roots(&pem.roots)?);

        // The CA service answers callers without a certificate; every other one asks for the peer's identity.
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .allow_unauthenticated()
            .build()?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.alpn_protocols = vec![b"h2".to_vec()];

        let mut client = client_builder()?.with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { me, server: Arc::new(server), client: Arc::new(client) })
    }
}

/// A client configuration's beginning: TLS 1.3 alone, ring.
pub(crate) fn client_builder()
-> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn read_roots(pem: &str) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err(IdentityError::NoCertificate) } else { Ok(roots) }
}
