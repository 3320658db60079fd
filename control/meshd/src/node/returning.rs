//! How a member comes back that can't by itself: locked, or with a certificate that ran out.

use std::sync::Arc;

use control_api::node::{JOIN_TIMEOUT, JoinRequest, SwarmError, UnlockError};
use control_model::authority::UnlockKey;

use super::lock::{self, LockError};
use super::swarm::Swarm;
use super::{MeshNode, Standing, certificate, text_of};
use crate::addresses::resolve_remote;

impl MeshNode {
    /// Gets a member whose certificate ran out another one, by a token. True if all of it was ready in time.
    pub(super) async fn come_back(
        &self,
        swarm: Arc<Swarm>,
        request: &JoinRequest,
    ) -> Result<bool, SwarmError> {
        let _changing = self.changing.lock().await;
        let mut last = SwarmError::Unreachable("no manager's address was given".into());
        for remote in &request.remote_addrs {
            for addr in resolve_remote(remote).await.unwrap_or_default() {
                match certificate::come_back(addr, &request.token, &swarm.pem()).await {
                    Ok(joined) => {
                        if joined.identity.node_id != swarm.node_id() {
                            return Err(SwarmError::Failed(
                                "the manager took this node for another one".into(),
                            ));
                        }
                        swarm.take_identity(joined.pem).map_err(|e| SwarmError::Failed(format!("{e:#}")))?;
                        return Ok(swarm.wait_until_ready(JOIN_TIMEOUT).await);
                    }
                    Err(error @ SwarmError::Token(_)) => return Err(error),
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }

    /// Goes on as the manager that this node was, if `key` opens its disk.
    pub(super) async fn open_lock(&self, key: UnlockKey) -> Result<(), UnlockError> {
        let _changing = self.changing.lock().await;
        if !matches!(self.standing(), Standing::Locked) {
            return Err(UnlockError::NotLocked);
        }
        let not_started = |error: &dyn std::error::Error| UnlockError::Failed(text_of(error));
        let file = self.dir.load().map_err(|error| not_started(&error))?;
        let file = file.ok_or_else(|| UnlockError::Failed("node.json is gone".into()))?;
        let opened = lock::open(&self.dir, Some(&key)).map_err(|error| match error {
            LockError::WrongKey => UnlockError::WrongKey,
            error => not_started(&error),
        })?;
        let swarm = self.start(opened, file).map_err(|error| not_started(&error))?;
        self.stand(Standing::In(swarm.clone()));
        // A manager that finds no quorum is unlocked all the same.
        swarm.wait_until_ready(JOIN_TIMEOUT).await;
        Ok(())
    }
}
