//! Root certificates as the API shows them.

use control_ca::{key_digest, root_digest};
use control_model::Cluster;
use control_model::authority::{KeyDigest, NodeTls};

use crate::base64;
use crate::dto::node::TlsInfo;

/// The roots that nodes of a cluster may have: the one that is trusted, and during a rotation the next one.
pub struct Roots {
    known: Vec<Root>,
}

struct Root {
    digest: KeyDigest,
    key: Option<KeyDigest>,
    info: TlsInfo,
}

impl Roots {
    /// The roots of `cluster`.
    pub fn of(cluster: &Cluster) -> Self {
        let next = cluster.ca.rotation.as_ref().map(|rotation| &rotation.root_cert);
        Self { known: [&cluster.ca.root_cert].into_iter().chain(next).map(|pem| Root::new(pem)).collect() }
    }

    /// What every node should have: the root that is trusted now, and the one that signs.
    pub fn wanted(&self) -> TlsInfo {
        let (trusted, signs) = (self.known.first(), self.known.last());
        let trust_root = trusted.map(|root| root.info.trust_root.clone()).unwrap_or_default();
        signs.map(|root| TlsInfo { trust_root, ..root.info.clone() }).unwrap_or_default()
    }

    /// What a node has. Roots that this cluster doesn't know any more are left out.
    pub fn held(&self, tls: Option<NodeTls>) -> TlsInfo {
        let Some(tls) = tls else { return TlsInfo::default() };
        let trusted = self.known.iter().find(|root| root.digest == tls.trust_root);
        let signer = self.known.iter().find(|root| root.key == Some(tls.issuer));
        let trust_root = trusted.map(|root| root.info.trust_root.clone()).unwrap_or_default();
        TlsInfo { trust_root, ..signer.map(|root| root.info.clone()).unwrap_or_default() }
    }
}

impl Root {
    fn new(pem: &str) -> Self {
        let mut info = TlsInfo { trust_root: pem.to_owned(), ..TlsInfo::default() };
        if let Ok((_, parsed)) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            && let Ok(certificate) = parsed.parse_x509()
        {
            info.cert_issuer_subject = base64::encode(certificate.subject().as_raw());
            info.cert_issuer_public_key = base64::encode(certificate.public_key().raw);
        }
        Self { digest: root_digest(pem), key: key_digest(pem), info }
    }
}

/// What every node of `cluster` should have.
pub fn tls_info(cluster: &Cluster) -> TlsInfo {
    Roots::of(cluster).wanted()
}
