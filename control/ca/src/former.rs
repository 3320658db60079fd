//! How a node whose certificate ran out shows that it is the one that the certificate names.
//!
//! It signs a second request with the key of that certificate, whose subject is the digest of the request for the new one:
//! nobody else can make it, and it is of no use for another request.

use control_model::{PeerIdentity, Timestamp};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue, KeyPair,
};
use sha2::{Digest, Sha256};

use crate::certificate::{Certificate, CertificateError, first_der, public_key_of};
use crate::request::RequestError;
use crate::token::hex;

/// Proofs larger than this are refused unread; one has about 400 bytes.
const MAX_PROOF_BYTES: usize = 16 << 10;
const NANOS_PER_S: i64 = 1_000_000_000;

/// The caller has not shown that it is the node of the certificate.
#[derive(Debug, thiserror::Error)]
pub enum FormerError {
    #[error("the former certificate is none of this cluster's")]
    Certificate(#[from] CertificateError),
    #[error("the proof of the former key is not valid")]
    Proof,
}

/// Proof (PEM) for the request `csr_pem` by the key of the former certificate.
pub fn prove_former(former_key_pem: &str, csr_pem: &str) -> Result<String, RequestError> {
    let key = KeyPair::from_pem(former_key_pem)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, digest_of(csr_pem));
    Ok(params.serialize_request(&key)?.pem()?)
}

/// Who the former certificate (a chain, PEM) names, if it was one under `roots`, whether or not its time is over at `now`,
/// and `proof` is by its key for `csr_pem`.
pub fn check_former(
    former_pem: &str,
    roots: &str,
    (proof, csr_pem): (&str, &str),
    now: Timestamp,
) -> Result<PeerIdentity, FormerError> {
    if proof.len() > MAX_PROOF_BYTES || former_pem.len() > MAX_PROOF_BYTES {
        return Err(FormerError::Proof);
    }
    let said = Certificate::parse(former_pem)?;
    let last_moment = Timestamp(said.not_after.0.saturating_sub(NANOS_PER_S));
    let former = Certificate::verify(former_pem, roots, last_moment.min(now))?;
    let request = CertificateSigningRequestParams::from_pem(proof).map_err(|_| FormerError::Proof)?;
    let key = first_der(former_pem).and_then(|der| public_key_of(&der)).ok_or(FormerError::Proof)?;
    let is_for = match request.params.distinguished_name.get(&DnType::CommonName) {
        Some(DnValue::Utf8String(text)) => *text == digest_of(csr_pem),
        _ => false,
    };
    if !is_for || rcgen::PublicKeyData::der_bytes(&request.public_key) != key {
        return Err(FormerError::Proof);
    }
    Ok(former.identity)
}

fn digest_of(csr_pem: &str) -> String {
    hex(&Sha256::digest(csr_pem.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use control_model::spec::Role;
    use control_model::{ClusterId, NodeId};

    use super::*;
    use crate::{NodeKey, RootCa};

    const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);
    const LIFE: Duration = Duration::from_hours(24);

    fn node(root: &RootCa) -> (NodeKey, String, PeerIdentity) {
        let identity = PeerIdentity {
            node_id: NodeId::from_bits(1),
            role: Role::Worker,
            cluster_id: ClusterId::from_bits(2),
        };
        let key = NodeKey::generate().expect("made");
        let certificate = root.issue(&key.csr_pem, identity, NOW, LIFE).expect("signed");
        (key, certificate, identity)
    }

    #[test]
    fn the_owner_of_a_certificate_is_known_long_after_its_end() {
        let root = RootCa::generate(NOW).expect("made");
        let (former, certificate, identity) = node(&root);
        let csr = NodeKey::generate().expect("made").csr_pem;
        let proof = prove_former(&former.key_pem, &csr).expect("signed");
        for later in [Duration::ZERO, LIFE * 1000] {
            let proven = check_former(&certificate, root.cert_pem(), (&proof, &csr), NOW.after(later));
            assert_eq!(proven.expect("believed"), identity);
        }
    }

    #[test]
    fn whoever_else_comes_with_it_is_refused() {
        let root = RootCa::generate(NOW).expect("made");
        let foreign = RootCa::generate(NOW).expect("made");
        let (former, certificate, _) = node(&root);
        let (other, other_certificate, _) = node(&foreign);
        let csr = NodeKey::generate().expect("made").csr_pem;
        let refused = |certificate: &str, key: &NodeKey, signed_for: &str| {
            let proof = prove_former(&key.key_pem, signed_for).expect("signed");
            check_former(certificate, root.cert_pem(), (&proof, &csr), NOW).is_err()
        };
        assert!(!refused(&certificate, &former, &csr));
        assert!(refused(&certificate, &other, &csr), "a certificate that was seen is not enough");
        assert!(refused(&certificate, &former, &other.csr_pem), "a proof for another request");
        assert!(refused(&other_certificate, &other, &csr), "a certificate of another cluster");
        assert!(refused(root.cert_pem(), &former, &csr) && refused("", &former, &csr));
        assert!(check_former(&certificate, root.cert_pem(), ("no proof", &csr), NOW).is_err());
    }
}
