//! The cluster itself: its settings and join tokens.

use std::sync::Arc;

use control_ca::JoinToken;
use control_model::object::{CaState, UnlockKey};
use control_model::spec::ClusterSpec;
use control_model::validate::validate_cluster;
use control_model::{Change, Cluster, Object};

use super::Control;
use super::authority::{SigningCa, next_authority};
use super::error::ControlError;

/// Which secrets are made anew, beside those that the spec asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    pub worker_token: bool,
    pub manager_token: bool,
    /// Without autolock there is none to be made.
    pub unlock_key: bool,
    /// The next root; the cluster makes one itself where the spec alone asks for it.
    pub signing_ca: SigningCa,
}

impl Control {
    /// The cluster.
    pub async fn cluster(&self) -> Result<Arc<Cluster>, ControlError> {
        self.read().await?.cluster().cloned().ok_or(ControlError::NoCluster)
    }

    /// Gives the cluster another spec, if its spec still has `version`, and new secrets as `rotation` says.
    pub async fn update_cluster(
        &self,
        version: u64,
        spec: ClusterSpec,
        rotation: Rotation,
    ) -> Result<(), ControlError> {
        validate_cluster(&spec)?;
        self.write(|state| {
            let old = state.cluster().ok_or(ControlError::NoCluster)?;
            if old.meta.spec_version != version {
                return Err(ControlError::OutOfSequence);
            }
            let ca = rotated(&old.ca, &spec, &rotation);
            let ca = next_authority(&ca, &spec, &rotation.signing_ca, (self.clock)())?;
            let cluster = Cluster { spec: spec.clone(), ca, ..(**old).clone() };
            let expected = old.meta.version;
            Ok((vec![Change::Update { object: Object::Cluster(Box::new(cluster)), expected }], ()))
        })
        .await
    }
}

fn rotated(ca: &CaState, spec: &ClusterSpec, rotation: &Rotation) -> CaState {
    let fresh = |rotate: bool, old: &str| {
        if rotate { JoinToken::new(&ca.root_cert, rand::random()).to_string() } else { old.to_owned() }
    };
    let kept = ca.unlock_key.filter(|_| !rotation.unlock_key);
    CaState {
        worker_token: fresh(rotation.worker_token, &ca.worker_token),
        manager_token: fresh(rotation.manager_token, &ca.manager_token),
        unlock_key: spec.autolock.then(|| kept.unwrap_or_else(|| UnlockKey(rand::random()))),
        ..ca.clone()
    }
}
