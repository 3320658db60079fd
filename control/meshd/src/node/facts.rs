//! What the API shows of this node and its swarm.

use control_api::node::{EXPIRED, HostFacts, LOCKED, LocalState, Membership, RaftFacts, RemoteManager};
use control_consensus::Consensus;
use control_model::spec::Role;

use super::Standing;
use super::swarm::Swarm;
use crate::host::Host;

/// Facts about the daemon.
pub fn host(host: &Host) -> HostFacts {
    let (runtime, path) = &host.runtime;
    HostFacts {
        hostname: host.config.hostname.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        root_dir: host.config.state_dir.to_string_lossy().into_owned(),
        labels: host.config.labels.iter().cloned().collect(),
        runtime: runtime.clone(),
        runtime_path: path.to_string_lossy().into_owned(),
        insecure_registries: host.config.insecure_registries.clone(),
        log_driver: host.config.log.name.clone(),
        warnings: Vec::new(),
    }
}

/// Where the node stands.
pub fn local(standing: &Standing) -> LocalState {
    match standing {
        Standing::Out => LocalState::default(),
        Standing::Pending => LocalState { membership: Membership::Pending, ..LocalState::default() },
        Standing::Locked => {
            LocalState { membership: Membership::Locked, error: LOCKED.into(), ..LocalState::default() }
        }
        Standing::Broken(error) => {
            LocalState { membership: Membership::Error, error: error.clone(), ..LocalState::default() }
        }
        Standing::In(swarm) => of_swarm(swarm),
    }
}

fn of_swarm(swarm: &Swarm) -> LocalState {
    let (me, file) = (swarm.me(), swarm.file());
    let store_runs = swarm.ready_consensus().is_some();
    let trouble = swarm.trouble.borrow().clone();
    let removed = swarm.session.borrow().removed;
    let is_expired = swarm.is_expired();
    let membership = match (me.role, store_runs) {
        _ if removed || is_expired => Membership::Error,
        (Role::Manager, false) if trouble.is_empty() => Membership::Pending,
        (Role::Manager, false) => Membership::Error,
        _ => Membership::Active,
    };
    LocalState {
        membership,
        node: Some(me.node_id),
        cluster: Some(me.cluster_id),
        is_manager: me.role == Role::Manager && store_runs,
        addr: Some(file.advertise.ip()),
        is_expired,
        error: match membership {
            _ if is_expired => EXPIRED.into(),
            Membership::Error => trouble,
            _ => String::new(),
        },
        remote_managers: file
            .managers
            .iter()
            .map(|manager| RemoteManager { node: manager.node, addr: manager.addr.to_string() })
            .collect(),
    }
}

/// What Raft knows.
pub fn raft(consensus: &Consensus) -> RaftFacts {
    let (leadership, members) = (*consensus.leadership().borrow(), consensus.members());
    let silent = consensus.silent();
    // One that was just lost is known to be silent before it is known to lead no more.
    let leader = leadership.leader.filter(|id| !silent.contains(id));
    let leader = leader.and_then(|id| members.get(&id)).map(|member| member.node_id);
    let unreachable = silent.iter().filter_map(|id| members.get(id)).map(|member| member.node_id).collect();
    RaftFacts { leader, unreachable }
}
