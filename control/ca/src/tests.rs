use std::time::Duration;

use control_model::identity::MANAGER_UNIT;
use control_model::spec::Role;
use control_model::{ClusterId, NodeId, PeerIdentity, Timestamp};

use super::*;

const NOW: Timestamp = Timestamp(1_795_000_000_123_456_789);
const DAYS_90: Duration = Duration::from_hours(90 * 24);

fn identity(role: Role) -> PeerIdentity {
    PeerIdentity { node_id: NodeId::from_bits(1), role, cluster_id: ClusterId::from_bits(2) }
}

fn issue(root: &RootCa, role: Role, now: Timestamp) -> String {
    root.issue(&NodeKey::generate().unwrap().csr_pem, identity(role), now, DAYS_90).unwrap()
}

#[test]
fn a_node_certificate_says_what_the_ca_chose() {
    let root = RootCa::generate(NOW).unwrap();
    let pem = issue(&root, Role::Worker, NOW);
    let certificate = Certificate::verify(&pem, root.cert_pem(), NOW).unwrap();
    assert_eq!(certificate.identity, identity(Role::Worker));
    let second = 1_000_000_000;
    assert_eq!(certificate.not_before, Timestamp((NOW.0 / second - 3600) * second));
    assert_eq!(certificate.not_after, Timestamp((NOW.0 / second + 90 * 24 * 3600) * second));
    assert_eq!(Certificate::parse(&pem).unwrap(), certificate);
}

#[test]
fn a_root_read_from_pem_signs_for_the_same_cluster() {
    let first = RootCa::generate(NOW).unwrap();
    let again = RootCa::from_pem(first.cert_pem(), &first.key_pem()).unwrap();
    assert_eq!(again.cert_pem(), first.cert_pem());
    let pem = issue(&again, Role::Manager, NOW);
    assert!(Certificate::verify(&pem, first.cert_pem(), NOW).is_ok());
    let other = RootCa::generate(NOW).unwrap();
    let mixed = RootCa::from_pem(first.cert_pem(), &other.key_pem());
    assert!(matches!(mixed, Err(RootError::KeyMismatch)));
}

#[test]
fn foreign_early_and_expired_certificates_are_refused() {
    let (root, foreign) = (RootCa::generate(NOW).unwrap(), RootCa::generate(NOW).unwrap());
    let pem = issue(&root, Role::Worker, NOW);
    let refused = |roots: &str, now| {
        matches!(Certificate::verify(&pem, roots, now), Err(CertificateError::Untrusted(_)))
    };
    assert!(refused(foreign.cert_pem(), NOW));
    assert!(refused(root.cert_pem(), NOW.after(DAYS_90 + Duration::from_secs(2))));
    assert!(refused(root.cert_pem(), Timestamp(NOW.0 - 7200 * 1_000_000_000)));
    let both = format!("{}{}", foreign.cert_pem(), root.cert_pem());
    assert!(!refused(&both, NOW));
    // A root is no node.
    assert!(Certificate::parse(root.cert_pem()).is_err());
}

#[test]
fn a_role_must_be_the_one_asked_for() {
    let root = RootCa::generate(NOW).unwrap();
    let worker = Certificate::parse(&issue(&root, Role::Worker, NOW)).unwrap();
    assert!(matches!(worker.require(Role::Manager), Err(CertificateError::WrongRole(Role::Worker))));
    assert!(worker.require(Role::Worker).is_ok());
}

#[test]
fn a_request_chooses_nothing_but_its_key() {
    let root = RootCa::generate(NOW).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![MANAGER_UNIT.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, MANAGER_UNIT);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    match root.issue(&csr, identity(Role::Worker), NOW, DAYS_90) {
        Ok(pem) => {
            let der = certificate::single_der(&pem).unwrap();
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
            assert!(!parsed.is_ca());
            let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value);
            assert!(!names.contains(MANAGER_UNIT), "{names}");
            assert_eq!(Certificate::parse(&pem).unwrap().identity, identity(Role::Worker));
        }
        Err(error) => assert!(matches!(error, IssueError::BadRequest(_)), "{error}"),
    }
}

#[test]
fn bad_requests_are_refused() {
    let root = RootCa::generate(NOW).unwrap();
    let good = NodeKey::generate().unwrap().csr_pem;
    let ask = |csr: &str, life| root.issue(csr, identity(Role::Worker), NOW, life);
    assert!(matches!(ask("", DAYS_90), Err(IssueError::BadRequest(_))));
    assert!(matches!(ask(root.cert_pem(), DAYS_90), Err(IssueError::BadRequest(_))));
    assert!(matches!(ask(&"x".repeat(1 << 20), DAYS_90), Err(IssueError::RequestTooLarge)));
    assert!(matches!(ask(&good, Duration::from_secs(3599)), Err(IssueError::LifeTooShort)));
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&p384).unwrap().pem().unwrap();
    assert!(matches!(ask(&csr, DAYS_90), Err(IssueError::KeyType)));
}

#[test]
fn a_forged_request_is_refused() {
    let root = RootCa::generate(NOW).unwrap();
    let good = NodeKey::generate().unwrap().csr_pem;
    // The last whole group of base-64 digits before the padding is inside of the signature.
    let at = good.trim_end_matches("-----END CERTIFICATE REQUEST-----\n").trim_end().len() - 8;
    let digit = if good.as_bytes()[at] == b'A' { "B" } else { "A" };
    let forged = format!("{}{digit}{}", &good[..at], &good[at + 1..]);
    assert!(root.issue(&good, identity(Role::Worker), NOW, DAYS_90).is_ok());
    let result = root.issue(&forged, identity(Role::Worker), NOW, DAYS_90);
    assert!(matches!(result, Err(IssueError::BadRequest(_))));
}

#[test]
fn renewal_is_between_half_and_four_fifths_of_life() {
    let root = RootCa::generate(NOW).unwrap();
    let certificate = Certificate::parse(&issue(&root, Role::Worker, NOW)).unwrap();
    let life = certificate.not_after.since(certificate.not_before);
    let part = |random| certificate.renew_at(random).since(certificate.not_before);
    assert_eq!(part(0), life / 2);
    assert_eq!(part(300), life * 4 / 5);
    assert!((0..2000).map(part).all(|part| part >= life / 2 && part <= life * 4 / 5));
    assert!(part(u64::MAX) <= life * 4 / 5);
}

#[test]
fn broken_pems_are_errors() {
    for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "\0\0"] {
        assert!(matches!(Certificate::parse(pem), Err(CertificateError::Malformed)));
        assert!(RootCa::from_pem(pem, pem).is_err());
    }
}

#[test]
fn a_chain_over_a_cross_signed_root_is_good_under_both_roots() {
    let (old, next, foreign) = (root(), root(), root());
    let cross = old.cross_sign(&next, NOW).unwrap();
    let leaf = issue(&next, Role::Worker, NOW);
    let chain = format!("{leaf}{cross}");
    assert!(Certificate::verify(&leaf, old.cert_pem(), NOW).is_err());
    for trusted in [&old, &next] {
        assert_eq!(
            Certificate::verify(&chain, trusted.cert_pem(), NOW).unwrap().identity,
            identity(Role::Worker)
        );
    }
    assert!(Certificate::verify(&chain, foreign.cert_pem(), NOW).is_err());
    // The copy has no name of its own: a root that is foreign to it doesn't make the chain good.
    let other = foreign.cross_sign(&next, NOW).unwrap();
    assert!(Certificate::verify(&format!("{leaf}{other}"), old.cert_pem(), NOW).is_err());
}

#[test]
fn nodes_say_which_root_they_trust_and_who_signed() {
    let (old, next) = (root(), root());
    let cross = old.cross_sign(&next, NOW).unwrap();
    let before = node_tls(&issue(&old, Role::Worker, NOW), old.cert_pem()).unwrap();
    assert_eq!(before.issuer, key_digest(old.cert_pem()).unwrap());
    let chain = format!("{}{cross}", issue(&next, Role::Worker, NOW));
    let between = node_tls(&chain, old.cert_pem()).unwrap();
    let after = node_tls(&chain, next.cert_pem()).unwrap();
    assert_eq!(between.trust_root, before.trust_root);
    assert_eq!(between.issuer, key_digest(next.cert_pem()).unwrap());
    assert_eq!((after.trust_root, after.issuer), (root_digest(next.cert_pem()), between.issuer));
    assert_eq!(node_tls("", "").map(|tls| tls.issuer), None);
}

fn root() -> RootCa {
    RootCa::generate(NOW).unwrap()
}

/// A certificate authority as a user makes one: its subject has several parts, in other string types.
fn users_root(life: Duration, is_ca: rcgen::IsCa) -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let country = rcgen::DnValue::PrintableString("CH".try_into().unwrap());
    params.distinguished_name.push(rcgen::DnType::CountryName, country);
    params.distinguished_name.push(rcgen::DnType::CommonName, "Our own");
    params.is_ca = is_ca;
    let end = NOW.after(life).0 / 1_000_000_000;
    params.not_after = time::OffsetDateTime::from_unix_timestamp(end).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_users_root_is_checked_and_can_be_gone_over_to() {
    let is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let years = Duration::from_hours(5 * 365 * 24);
    let (cert, key) = users_root(years, is_ca);
    // With what `openssl x509 -text` prints above it.
    let next = RootCa::from_user(&format!("Certificate:\n    Data:\n{cert}\n\n"), &key, NOW).unwrap();
    assert_eq!(next.cert_pem().lines().next(), Some("-----BEGIN CERTIFICATE-----"));
    assert_eq!(RootCa::from_user(next.cert_pem(), &key, NOW).unwrap().cert_pem(), next.cert_pem());
    let old = root();
    let chain = format!("{}{}", issue(&next, Role::Manager, NOW), old.cross_sign(&next, NOW).unwrap());
    for trusted in [&old, &next] {
        assert!(Certificate::verify(&chain, trusted.cert_pem(), NOW).is_ok());
    }

    let refusal = |cert: &str, key: &str| RootCa::from_user(cert, key, NOW).unwrap_err().to_string();
    let other = root();
    assert_eq!(refusal("", &key), "could not parse the desired CA certificate");
    assert_eq!(
        refusal(&cert.repeat(2), &key),
        "the desired CA certificate cannot contain multiple certificates"
    );
    assert_eq!(refusal(&cert, &other.key_pem()), "certificate key mismatch");
    assert!(refusal(&cert, "no key").starts_with("the desired CA key can't be used"));
    let (brief, brief_key) = users_root(Duration::from_hours(364 * 24), is_ca);
    assert_eq!(refusal(&brief, &brief_key), "CA certificate expires too soon");
    let (leaf, leaf_key) = users_root(years, rcgen::IsCa::ExplicitNoCa);
    assert!(refusal(&leaf, &leaf_key).contains("is not that of a certificate authority"));
}
