//! `docker swarm init --force-new-cluster`: a cluster of this manager alone, out of what it has on disk. Also on another
//! machine, to which the state directory was copied.

use std::net::IpAddr;
use std::sync::Arc;

use control_api::node::{InitRequest, JOIN_TIMEOUT, LOCKED, SwarmError};
use control_consensus::Consensus;
use control_manager::{Senses, clock};
use control_model::gossip::RING_LEN;
use control_model::object::ManagerStatus;
use control_model::spec::{NodeSpec, Role};
use control_model::{Change, Cluster, Node, NodeId, Object, Timestamp};
use control_store::State;
use tokio::sync::watch;

use super::lock::{self, Opened};
use super::manager::RunningManager;
use super::swarm::{Parts, Swarm, new_raft_id};
use super::{CLI_LISTEN_ADDR, MeshNode, Standing, channels, failed};
use crate::addresses::Addresses;
use crate::data_plane::NodeDataPlane;
use crate::disk::{KnownManager, NodeFile};

const NANOSECONDS_PER_MS: i64 = 1_000_000;

impl MeshNode {
    /// Stops the manager that runs, and begins anew as the only one. Tasks and data plane go on. A failure leaves the
    /// node where it was.
    pub(super) async fn force_new_cluster(
        self: Arc<Self>,
        request: &InitRequest,
    ) -> Result<NodeId, SwarmError> {
        let _changing = self.changing.lock().await;
        let former = self.dir.load().map_err(failed)?.ok_or(SwarmError::NothingToForce)?;
        if Consensus::stored_raft_id(&self.dir.raft()).map_err(failed)?.is_none() {
            return Err(SwarmError::NothingToForce);
        }
        let addresses = self.addresses_of(request, &former)?;
        let (opened, data_plane) = match self.standing() {
            Standing::In(swarm) => {
                swarm.shut_down().await;
                (swarm.opened(), swarm.data_plane().clone())
            }
            Standing::Locked => return Err(SwarmError::Unreachable(LOCKED.into())),
            Standing::Out | Standing::Pending | Standing::Broken(_) => {
                let opened = lock::open(&self.dir, None).map_err(failed)?;
                (opened, NodeDataPlane::start(&self.host.config).map_err(failed)?)
            }
        };
        self.stand(Standing::Pending);
        match self.begin_alone(former, addresses, opened.clone(), data_plane.clone()).await {
            Ok(swarm) => {
                swarm.wait_until_ready(JOIN_TIMEOUT).await;
                let id = swarm.node_id();
                self.stand(Standing::In(swarm));
                Ok(id)
            }
            Err(error) => {
                self.stand(self.go_on(opened, data_plane));
                Err(error)
            }
        }
    }

    /// With what is on the disk: a locked one was opened already.
    fn go_on(&self, opened: Opened, data_plane: NodeDataPlane) -> Standing {
        let file = self.dir.load().map_err(failed).and_then(|file| file.ok_or(SwarmError::NothingToForce));
        let swarm = file.and_then(|file| self.start_on(data_plane, opened, file));
        swarm.map_or_else(|error| Standing::Broken(error.to_string()), Standing::In)
    }

    async fn begin_alone(
        &self,
        former: NodeFile,
        addresses: Addresses,
        Opened { pem, kek }: Opened,
        data_plane: NodeDataPlane,
    ) -> Result<Arc<Swarm>, SwarmError> {
        let kek = kek.ok_or(SwarmError::NothingToForce)?;
        let channels = channels(&pem)?;
        let (node, raft_id) = (former.node, new_raft_id());
        let file = NodeFile {
            listen: addresses.listen,
            advertise: addresses.advertise,
            advertise_is_own: self.is_own(addresses.advertise.ip()),
            data_path: addresses.data_path,
            raft_id: Some(raft_id),
            managers: vec![KnownManager { node, addr: addresses.advertise }],
            ..former
        };
        let manager = ManagerStatus { raft_id, addr: addresses.advertise };
        let opinion = watch::Sender::default();
        let senses = Senses { own_data_path: data_plane.is_up.clone(), opinion: opinion.subscribe() };
        let changes = Box::new(move |state: &State| alone(state, node, manager, clock::now()));
        let running = RunningManager::recover((&self.dir, kek.clone()), &channels, &file, senses, changes);
        let running = running.await.map_err(failed)?;
        self.dir.store(&file).map_err(failed)?;
        if let Err(error) = running.wait_to_lead().await {
            running.stop().await;
            return Err(failed(error));
        }
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
            epoch: self.dir.load_epoch().map_err(failed)?,
            manager: Some(running),
        }))
    }

    /// What the request says; what it leaves open is as before, or, where this is another machine, chosen anew.
    fn addresses_of(&self, request: &InitRequest, former: &NodeFile) -> Result<Addresses, SwarmError> {
        let own = self.host.addresses.read();
        let is_here = |ip: IpAddr| ip.is_unspecified() || own.all().any(|own| own == ip);
        let or_former = |given: &str, ip, former: String| match given {
            "" | CLI_LISTEN_ADDR if is_here(ip) => former,
            given => given.to_owned(),
        };
        let NodeFile { listen, advertise, data_path, .. } = former;
        self.addresses(
            &or_former(&request.listen_addr, listen.ip(), listen.to_string()),
            &or_former(&request.advertise_addr, advertise.ip(), advertise.to_string()),
            &or_former(&request.data_path_addr, *data_path, data_path.to_string()),
        )
    }
}

/// What makes of the state one whose only manager is `me`: the others are workers if they come back. The fencing epoch
/// grows: nobody who has seen it obeys one of them as it was. It is the time, in milliseconds since 1970, so that two new
/// clusters that are forced out of one have two epochs, and the later one wins.
pub(super) fn alone(state: &State, me: NodeId, manager: ManagerStatus, now: Timestamp) -> Vec<Change> {
    let now_ms = u64::try_from(now.0 / NANOSECONDS_PER_MS).unwrap_or_default();
    let cluster = state.cluster().map(|old| {
        // All keys of gossip are new: whoever lives on in the old cluster is a stranger.
        let gossip_keys =
            (0..RING_LEN).fold(old.gossip_keys.clone(), |ring, _| ring.rotated(rand::random, now));
        let object = Cluster { epoch: now_ms.max(old.epoch + 1), gossip_keys, ..(**old).clone() };
        Change::Update { object: Object::Cluster(Box::new(object)), expected: old.meta.version }
    });
    let nodes = state.nodes().iter().filter_map(|old| {
        let (role, manager) =
            if old.id == me { (Role::Manager, Some(manager)) } else { (Role::Worker, None) };
        let spec = NodeSpec { role, ..old.spec.clone() };
        let object = Node { spec, manager, ..(**old).clone() };
        let changed = object != **old;
        let expected = old.meta.version;
        changed.then(|| Change::Update { object: Object::Node(Box::new(object)), expected })
    });
    let missing = state.nodes().get(&me).is_none().then(|| {
        let object = Node { manager: Some(manager), ..Node::new(me, Role::Manager) };
        Change::Create(Object::Node(Box::new(object)))
    });
    cluster.into_iter().chain(nodes).chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use control_model::{ClusterId, Entry, RequestId};

    use super::*;

    fn status(raft_id: u64) -> ManagerStatus {
        ManagerStatus { raft_id, addr: "198.18.0.11:2377".parse().expect("an address") }
    }

    fn apply(state: &mut State, changes: Vec<Change>) {
        let index = state.index() + 1;
        let entry = Entry { request: RequestId(index.into()), at: Timestamp(0), changes };
        state.apply(index, &entry).expect("it fits");
    }

    #[test]
    fn one_manager_is_left_and_the_epoch_grows() {
        let id = NodeId::from_bits;
        let mut state = State::default();
        let mut objects = vec![Object::Cluster(Box::new(Cluster::new(ClusterId::from_bits(1))))];
        for (n, role) in [(1, Role::Manager), (2, Role::Manager), (3, Role::Manager), (4, Role::Worker)] {
            let manager = (role == Role::Manager).then(|| status(u64::try_from(n).expect("small")));
            objects.push(Object::Node(Box::new(Node { manager, ..Node::new(id(n), role) })));
        }
        apply(&mut state, objects.into_iter().map(Change::Create).collect());
        // The third one's clock is behind.
        for (at_ms, epoch, me) in [(50, 50, 1), (60, 60, 4), (7, 61, 5)] {
            let now = Timestamp(at_ms * NANOSECONDS_PER_MS);
            let changes = alone(&state, id(me), status(77), now);
            apply(&mut state, changes);
            assert_eq!(state.cluster().map(|cluster| cluster.epoch), Some(epoch));
            let managers =
                state.nodes().iter().filter(|n| n.spec.role == Role::Manager || n.manager.is_some());
            let managers: Vec<_> = managers.map(|node| (node.id, node.spec.role, node.manager)).collect();
            assert_eq!(managers, [(id(me), Role::Manager, Some(status(77)))]);
        }
        // What its certificate says is known until it has another: a promotion waits for that.
        let former = state.nodes().get(&id(2)).expect("it stays a node");
        assert_eq!(former.certificate_role, Role::Manager);
    }
}
