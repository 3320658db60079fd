//! Backups of a cluster, and clusters made of them.

use std::sync::Arc;

use control_api::node::{BackupSecret as Given, RestoreRequest, SwarmError};
use control_ca::NodeKey;
use control_consensus::{Backup, BackupError, BackupSecret};
use control_manager::{Senses, ca_server, clock};
use control_model::object::ManagerStatus;
use control_model::spec::Role;
use control_model::{Cluster, PeerIdentity};
use control_rpc::IdentityPem;
use control_store::{ReplicatedStore as _, State};
use tokio::sync::watch;

use super::lock;
use super::manager::RunningManager;
use super::recovery::alone;
use super::swarm::{Parts, Swarm, new_raft_id};
use super::{MeshNode, channels, failed};
use crate::data_plane::NodeDataPlane;
use crate::disk::{KnownManager, NodeFile};

impl MeshNode {
    /// The cluster's state as this manager has it, sealed.
    pub(super) async fn take_backup(&self, secret: Given) -> Result<Vec<u8>, SwarmError> {
        let stopped = || SwarmError::Failed("the manager is stopping".into());
        let swarm = self.swarm().ok_or_else(stopped)?;
        let state = swarm.consensus().ok_or_else(stopped)?.state();
        let me = swarm.me();
        let sealing = tokio::task::spawn_blocking(move || {
            let (node, cluster, state) = (me.node_id, me.cluster_id, (*state).clone());
            Backup { taken_at: clock::now(), node, cluster, state }.seal(&secret_of(secret))
        });
        sealing.await.map_err(failed)?.map_err(refused)
    }

    /// Makes a cluster of a backup, with this node as its only manager: it becomes the node that the backup was taken from,
    /// under a new certificate of the cluster's own root.
    pub(super) async fn do_restore(&self, request: RestoreRequest) -> Result<Arc<Swarm>, SwarmError> {
        let addresses =
            self.addresses(&request.listen_addr, &request.advertise_addr, &request.data_path_addr)?;
        let RestoreRequest { file, secret, .. } = request;
        let opening = tokio::task::spawn_blocking(move || Backup::open(&file, &secret_of(secret)));
        let backup = opening.await.map_err(failed)?.map_err(refused)?;
        let cluster = backup.state.cluster().cloned();
        let cluster = cluster.ok_or_else(|| SwarmError::Backup("the backup holds no cluster".into()))?;
        let identity = PeerIdentity { node_id: backup.node, role: Role::Manager, cluster_id: backup.cluster };
        let pem = issue(&cluster, identity)?;
        let manager = ManagerStatus { raft_id: new_raft_id(), addr: addresses.advertise };
        let file = NodeFile {
            node: backup.node,
            cluster: backup.cluster,
            listen: addresses.listen,
            advertise: addresses.advertise,
            advertise_is_own: self.is_own(addresses.advertise.ip()),
            data_path: addresses.data_path,
            data_path_port: cluster.data_path_port,
            raft_id: Some(manager.raft_id),
            managers: vec![KnownManager { node: backup.node, addr: addresses.advertise }],
        };
        let channels = channels(&pem)?;
        let data_plane = NodeDataPlane::start(&self.host.config).map_err(failed)?;
        let kek = lock::new_kek(&self.dir, cluster.ca.unlock_key, cluster.meta.version).map_err(failed)?;
        let (opinion, node) = (watch::Sender::default(), backup.node);
        let senses = Senses { own_data_path: data_plane.is_up.clone(), opinion: opinion.subscribe() };
        let changes = Box::new(move |state: &State| alone(state, node, manager, clock::now()));
        let with = (&self.dir, kek.clone());
        let running = RunningManager::restore(with, &channels, &file, senses, (backup.state, changes));
        let running = running.await.map_err(failed)?;
        if let Err(error) = running.wait_to_lead().await {
            running.stop().await;
            return Err(failed(error));
        }
        lock::store_identity(&self.dir, &pem, Some(&kek)).map_err(failed)?;
        self.dir.store(&file).map_err(failed)?;
        Ok(Swarm::start(Parts {
            host: self.host.clone(),
            dir: self.dir.clone(),
            inspect: self.inspect(),
            channels,
            pem,
            kek: Some(kek),
            file,
            data_plane,
            opinion,
            epoch: 0,
            manager: Some(running),
        }))
    }
}

/// A certificate as the cluster's managers gave it.
fn issue(cluster: &Cluster, identity: PeerIdentity) -> Result<IdentityPem, SwarmError> {
    let key = NodeKey::generate().map_err(failed)?;
    let issued = ca_server::issue(cluster, &key.csr_pem, identity).map_err(failed)?;
    Ok(IdentityPem { certificate: issued.certificate_pem, key: key.key_pem, roots: issued.root_pem })
}

fn secret_of(given: Given) -> BackupSecret {
    match given {
        Given::Passphrase(words) => BackupSecret::Passphrase(words.into()),
        Given::KeyFile(bytes) => BackupSecret::KeyFile(bytes.into()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: BackupError) -> SwarmError {
    SwarmError::Backup(error.to_string())
}
