//! The root certificate as the API shows it.

use control_model::Cluster;

use crate::base64;
use crate::dto::node::TlsInfo;

/// The cluster's root, its subject and its public key.
pub fn tls_info(cluster: &Cluster) -> TlsInfo {
    let mut info = TlsInfo { trust_root: cluster.ca.root_cert.clone(), ..TlsInfo::default() };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cluster.ca.root_cert.as_bytes()) else { return info };
    if let Ok(certificate) = pem.parse_x509() {
        info.cert_issuer_subject = base64::encode(certificate.subject().as_raw());
        info.cert_issuer_public_key = base64::encode(certificate.public_key().raw);
    }
    info
}
