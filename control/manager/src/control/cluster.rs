//! The cluster itself: its settings and join tokens.

use std::sync::Arc;

use control_ca::JoinToken;
use control_model::object::CaState;
use control_model::spec::ClusterSpec;
use control_model::validate::validate_cluster;
use control_model::{Change, Cluster, Object};

use super::Control;
use super::error::ControlError;

/// Which join tokens get a new secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotation {
    pub worker_token: bool,
    pub manager_token: bool,
}

impl Control {
    /// The cluster.
    pub async fn cluster(&self) -> Result<Arc<Cluster>, ControlError> {
        self.read().await?.cluster().cloned().ok_or(ControlError::NoCluster)
    }

    /// Gives the cluster another spec, if its spec still has `version`, and new tokens as `rotation` says.
    pub async fn update_cluster(
        &self,
        version: u64,
        spec: ClusterSpec,
        rotation: Rotation,
    ) -> Result<(), ControlError> {
        validate_cluster(&spec)?;
        if spec.autolock {
            return Err(ControlError::Unsupported("locking managers (autolock)"));
        }
        self.write(|state| {
            let old = state.cluster().ok_or(ControlError::NoCluster)?;
            if old.meta.spec_version != version {
                return Err(ControlError::OutOfSequence);
            }
            let cluster = Cluster { spec: spec.clone(), ca: rotated(&old.ca, rotation), ..(**old).clone() };
            let expected = old.meta.version;
            Ok((vec![Change::Update { object: Object::Cluster(Box::new(cluster)), expected }], ()))
        })
        .await
    }
}

fn rotated(ca: &CaState, rotation: Rotation) -> CaState {
    let fresh = |rotate: bool, old: &str| {
        if rotate { JoinToken::new(&ca.root_cert, rand::random()).to_string() } else { old.to_owned() }
    };
    CaState {
        worker_token: fresh(rotation.worker_token, &ca.worker_token),
        manager_token: fresh(rotation.manager_token, &ca.manager_token),
        ..ca.clone()
    }
}
