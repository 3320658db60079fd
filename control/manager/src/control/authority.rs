//! From one root to the next: what a change of the cluster's spec means for its certificate authority
//! (swarmkit `manager/controlapi/ca_rotation.go`).

use control_ca::{RootCa, RootError, UserRootError, key_digest};
use control_model::Timestamp;
use control_model::authority::{CaState, RootRotation};
use control_model::spec::ClusterSpec;

/// The root that a user gives with the spec. Both empty: none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SigningCa {
    /// PEM.
    pub cert: String,
    pub key: String,
}

impl std::fmt::Debug for SigningCa {
    /// Keeps the key out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningCa").finish_non_exhaustive()
    }
}

/// No root to go over to. The words are swarmkit's where it has any.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("if a signing CA key is provided, the signing CA cert must also be provided")]
    KeyAlone,
    /// swarmkit would look for an external authority here.
    #[error(
        "there must be a signing CA key for the desired CA certificate: external CAs are not supported by this daemon"
    )]
    NoKey,
    #[error("Cannot update to a cert with an identical key")]
    SameKey,
    #[error(transparent)]
    User(#[from] UserRootError),
    #[error(transparent)]
    Root(#[from] RootError),
}

/// The authority of a cluster that is to have `spec`, and `given` as its root if that says one.
pub fn next_authority(
    old: &CaState,
    spec: &ClusterSpec,
    given: &SigningCa,
    now: Timestamp,
) -> Result<CaState, RotationError> {
    let forced = CaState { last_forced_rotation: spec.force_rotate, ..old.clone() };
    match (given.cert.trim().is_empty(), given.key.trim().is_empty()) {
        (true, true) if spec.force_rotate == old.last_forced_rotation => return Ok(old.clone()),
        (true, true) => return begin(forced, &RootCa::generate(now)?, now),
        (true, false) => return Err(RotationError::KeyAlone),
        (false, true) if is_same(&given.cert, &old.root_cert) => {
            return Ok(CaState { rotation: None, ..signed_by_root(forced) });
        }
        (false, true) => return Err(RotationError::NoKey),
        (false, false) => {}
    }
    let next = RootCa::from_user(&given.cert, &given.key, now)?;
    if next.cert_pem() == old.root_cert {
        // Back to where it began: nodes that have changed already change again.
        return Ok(CaState { rotation: None, ..signed_by_root(forced) });
    }
    if old.rotation.as_ref().is_some_and(|rotation| rotation.root_cert == next.cert_pem()) {
        return Ok(forced);
    }
    begin(forced, &next, now)
}

/// Begins the way from the present root to `next`, in place of one that is under way.
fn begin(ca: CaState, next: &RootCa, now: Timestamp) -> Result<CaState, RotationError> {
    let present = RootCa::from_pem(&ca.root_cert, &ca.root_key)?;
    if present.has_key_of(next) {
        return Err(RotationError::SameKey);
    }
    let rotation = RootRotation {
        root_cert: next.cert_pem().to_owned(),
        root_key: next.key_pem(),
        cross_signed: present.cross_sign(next, now)?,
    };
    let issuer = key_digest(next.cert_pem());
    Ok(CaState { rotation: Some(rotation), issuer, ..ca })
}

fn signed_by_root(ca: CaState) -> CaState {
    CaState { issuer: key_digest(&ca.root_cert), ..ca }
}

fn is_same(given: &str, root: &str) -> bool {
    given.trim() == root.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);

    fn first() -> CaState {
        let root = RootCa::generate(NOW).expect("made");
        let issuer = key_digest(root.cert_pem());
        CaState {
            root_cert: root.cert_pem().to_owned(),
            root_key: root.key_pem(),
            issuer,
            ..CaState::default()
        }
    }

    fn forced(n: u64) -> ClusterSpec {
        ClusterSpec { force_rotate: n, ..ClusterSpec::default() }
    }

    fn none() -> SigningCa {
        SigningCa::default()
    }

    #[test]
    fn a_spec_that_asks_for_nothing_new_changes_nothing() {
        let ca = first();
        assert!(next_authority(&ca, &forced(0), &none(), NOW).expect("fine") == ca);
        let rotating = next_authority(&ca, &forced(1), &none(), NOW).expect("begun");
        assert!(next_authority(&rotating, &forced(1), &none(), NOW).expect("fine") == rotating);
    }

    #[test]
    fn a_forced_rotation_signs_with_a_new_root_and_trusts_the_old_one() {
        let ca = first();
        let next = next_authority(&ca, &forced(1), &none(), NOW).expect("begun");
        let rotation = next.rotation.expect("under way");
        assert_eq!((&next.root_cert, next.last_forced_rotation), (&ca.root_cert, 1));
        assert_ne!(rotation.root_cert, ca.root_cert);
        assert_eq!(next.issuer, key_digest(&rotation.root_cert));
        assert_eq!(key_digest(&rotation.cross_signed), next.issuer);
        // Another one takes its place, signed by the root that nodes trust.
        let again = next_authority(
            &CaState { rotation: Some(rotation.clone()), ..first() },
            &forced(2),
            &none(),
            NOW,
        );
        assert_ne!(again.expect("begun").rotation.expect("under way").root_cert, rotation.root_cert);
    }

    #[test]
    fn a_users_root_begins_changes_nothing_or_ends_a_rotation() {
        let (ca, own) = (first(), RootCa::generate(NOW).expect("made"));
        let given = SigningCa { cert: own.cert_pem().to_owned(), key: own.key_pem() };
        let rotating = next_authority(&ca, &forced(1), &given, NOW).expect("begun");
        assert_eq!(rotating.rotation.as_ref().expect("under way").root_cert, own.cert_pem());
        let again = next_authority(&rotating, &forced(2), &given, NOW).expect("the same");
        assert!(again.rotation == rotating.rotation, "the one under way goes on");
        let back = SigningCa { cert: ca.root_cert.clone(), key: ca.root_key.clone() };
        for back in [back.clone(), SigningCa { key: String::new(), ..back }] {
            let ended = next_authority(&rotating, &forced(3), &back, NOW).expect("ended");
            assert!(ended.rotation.is_none() && ended.issuer == ca.issuer);
        }
    }

    #[test]
    fn half_a_root_and_the_same_key_are_refused() {
        let (ca, own) = (first(), RootCa::generate(NOW).expect("made"));
        let refusal = |cert: &str, key: &str| {
            let given = SigningCa { cert: cert.to_owned(), key: key.to_owned() };
            next_authority(&ca, &forced(1), &given, NOW).expect_err("refused").to_string()
        };
        assert!(refusal("", &own.key_pem()).starts_with("if a signing CA key is provided"));
        assert!(refusal(own.cert_pem(), "").contains("external CAs are not supported"));
        assert!(refusal("nonsense", &own.key_pem()).starts_with("could not parse"));
    }
}
