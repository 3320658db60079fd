//! `docker swarm …`.

use axum::extract::State;
use control_ca::{parse_unlock_key, unlock_key_text};
use control_manager::control::{Rotation, SigningCa};
use control_model::Cluster;
use control_model::spec::{Availability, ClusterSpec, Role};
use ipnetwork::IpNetwork;

use crate::body::Json;
use crate::context::Api;
use crate::convert::cluster::{cluster_info, cluster_spec};
use crate::convert::node::availability;
use crate::convert::refuse_unknown;
use crate::dto::swarm as api_swarm;
use crate::error::ApiError;
use crate::node::{InitRequest, JoinRequest, Membership, SwarmError, UnlockError};
use crate::query::Query;
use crate::reply::{Reply, done, ok};
use crate::tls::tls_info;

/// Largest prefix length of a subnet: two usable addresses are the least that a network can do with.
const MAX_SUBNET_SIZE: u32 = 29;
/// Ports that the tunnels may use: neither reserved nor ephemeral (moby `getDataPathPort`).
const DATA_PATH_PORTS: std::ops::RangeInclusive<u16> = 1024..=49151;

pub async fn inspect(State(api): State<Api>) -> Reply {
    let cluster = api.control()?.cluster().await?;
    ok(&api_swarm::Swarm {
        info: cluster_info(&cluster, tls_info(&cluster)),
        join_tokens: api_swarm::JoinTokens {
            worker: cluster.ca.worker_token.clone(),
            manager: cluster.ca.manager_token.clone(),
        },
    })
}

pub async fn init(State(api): State<Api>, Json(given): Json<api_swarm::InitRequest>) -> Reply {
    let is_member = api.node.local().membership != Membership::Inactive;
    if is_member && !given.force_new_cluster {
        return Err(SwarmError::AlreadyInSwarm.into());
    }
    let request = init_request(given)?;
    if is_member {
        refuse_settings(&request)?;
    }
    let id = api.node.init(request).await?;
    ok(&id.to_string())
}

/// A new cluster that is forced out of an old one has the old one's settings.
fn refuse_settings(request: &InitRequest) -> Result<(), ApiError> {
    let given = [
        ("AutoLockManagers", request.cluster.autolock),
        ("DefaultAddrPool", !request.default_address_pool.is_empty()),
        ("SubnetSize", request.subnet_size != Cluster::SUBNET_SIZE),
        ("DataPathPort", request.data_path_port != 0),
        ("Availability", request.availability != Availability::default()),
        ("Spec", request.cluster != ClusterSpec::default()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((name, _)) => Err(ApiError::unsupported(format!("init with ForceNewCluster and {name}"))),
        None => Ok(()),
    }
}

fn init_request(given: api_swarm::InitRequest) -> Result<InitRequest, ApiError> {
    refuse_unknown(&given.rest, "init")?;
    if !given.spec.ca_config.signing_ca_cert.is_empty() || !given.spec.ca_config.signing_ca_key.is_empty() {
        return Err(ApiError::unsupported("init with Spec.CAConfig.SigningCACert"));
    }
    let mut cluster = cluster_spec(given.spec, ClusterSpec::default())?;
    cluster.autolock |= given.auto_lock_managers;
    let (pool, subnet_size) = address_pool(&given.default_addr_pool, given.subnet_size)?;
    Ok(InitRequest {
        listen_addr: given.listen_addr,
        advertise_addr: given.advertise_addr,
        data_path_addr: given.data_path_addr,
        data_path_port: data_path_port(given.data_path_port)?,
        force_new_cluster: given.force_new_cluster,
        availability: availability(&given.availability)?,
        default_address_pool: pool,
        subnet_size,
        cluster,
    })
}

fn data_path_port(given: u32) -> Result<u16, ApiError> {
    match u16::try_from(given) {
        Ok(port) if port == 0 || DATA_PATH_PORTS.contains(&port) => Ok(port),
        _ => Err(ApiError::invalid(format!(
            "invalid data path port {given}: must be between {} and {}",
            DATA_PATH_PORTS.start(),
            DATA_PATH_PORTS.end()
        ))),
    }
}

/// Pools, and the prefix length of the subnets to take from them (moby `validateDefaultAddrPool`).
fn address_pool(given: &[String], size: u32) -> Result<(Vec<IpNetwork>, u8), ApiError> {
    let size = if size == 0 { u32::from(Cluster::SUBNET_SIZE) } else { size };
    let size = u8::try_from(size)
        .ok()
        .filter(|size| u32::from(*size) <= MAX_SUBNET_SIZE)
        .ok_or_else(|| ApiError::invalid(format!("subnet size is out of range: {size}")))?;
    let mut pools: Vec<IpNetwork> = Vec::with_capacity(given.len());
    for text in given {
        let pool: IpNetwork =
            text.parse().map_err(|_| ApiError::invalid(format!("invalid CIDR address: {text}")))?;
        if !pool.is_ipv4() {
            return Err(ApiError::unsupported("an IPv6 address pool"));
        }
        if pool.prefix() > size {
            return Err(ApiError::invalid(format!(
                "invalid CIDR: {text:?}. Subnet size is too small for pool: {size}"
            )));
        }
        if let Some(other) = pools.iter().find(|o| o.contains(pool.network()) || pool.contains(o.network())) {
            return Err(ApiError::invalid(format!(
                "invalid CIDR: {text:?} overlaps with address pool: {other}"
            )));
        }
        pools.push(pool);
    }
    Ok((pools, size))
}

pub async fn join(State(api): State<Api>, Json(given): Json<api_swarm::JoinRequest>) -> Reply {
    let local = api.node.local();
    if local.membership != Membership::Inactive && !local.is_expired {
        return Err(SwarmError::AlreadyInSwarm.into());
    }
    refuse_unknown(&given.rest, "join")?;
    if given.remote_addrs.is_empty() {
        return Err(ApiError::invalid("at least 1 RemoteAddr is required to join"));
    }
    let request = JoinRequest {
        listen_addr: given.listen_addr,
        advertise_addr: given.advertise_addr,
        data_path_addr: given.data_path_addr,
        remote_addrs: given.remote_addrs,
        token: given.join_token,
        availability: availability(&given.availability)?,
    };
    api.node.join(request).await?;
    done()
}

pub async fn leave(State(api): State<Api>, query: Query) -> Reply {
    let force = query.flag("force");
    let local = api.node.local();
    if local.membership == Membership::Inactive {
        return Err(SwarmError::NotInSwarm.into());
    }
    if local.membership == Membership::Locked && !force {
        return Err(ApiError::unavailable(
            "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.",
        ));
    }
    if local.is_manager && !force {
        return Err(ApiError::unavailable(why_not_leave(&api)));
    }
    api.node.leave(force).await?;
    done()
}

const LEAVING_MANAGER: &str =
    "You are attempting to leave the swarm on a node that is participating as a manager. ";
const RESTORE: &str = "The only way to restore a swarm that has lost consensus is to reinitialize it with \
                       `--force-new-cluster`. Use `--force` to suppress this message.";

/// Docker's warning for a manager that leaves without `--force`. Its spaces and full stops are Docker's.
fn why_not_leave(api: &Api) -> String {
    let Some(store) = api.node.store() else {
        return format!("{LEAVING_MANAGER}Doing so may lose the consensus of your cluster. {RESTORE}");
    };
    let (state, raft) = (store.state(), api.node.raft());
    let managers = state.nodes().iter().filter(|n| n.spec.role == Role::Manager || n.manager.is_some());
    let (unreachable, reachable): (Vec<_>, Vec<_>) = managers.partition(|n| raft.unreachable.contains(&n.id));
    why_not_leave_of(reachable.len(), unreachable.len())
}

/// [`why_not_leave`] of one of so many reachable managers.
fn why_not_leave_of(n_reachable: usize, n_unreachable: usize) -> String {
    let n_all = n_reachable + n_unreachable;
    if n_all <= 1 {
        return format!(
            "{LEAVING_MANAGER}Removing the last manager erases all current state of the swarm. Use `--force` to ignore \
             this message. "
        );
    }
    // What is left must still be more than half of all (moby `removingManagerCausesLossOfQuorum`).
    if n_reachable.saturating_sub(2) <= n_unreachable {
        let left = n_reachable.saturating_sub(1);
        return format!(
            "{LEAVING_MANAGER}Removing this node leaves {left} managers out of {n_all}. Without a Raft quorum your \
             swarm will be inaccessible. {RESTORE}"
        );
    }
    format!("{LEAVING_MANAGER}{RESTORE}")
}

pub async fn update(State(api): State<Api>, query: Query, Json(mut given): Json<api_swarm::Spec>) -> Reply {
    let version = query.version("swarm")?;
    let signing_ca = SigningCa {
        cert: std::mem::take(&mut given.ca_config.signing_ca_cert),
        key: std::mem::take(&mut given.ca_config.signing_ca_key),
    };
    let rotation = Rotation {
        signing_ca,
        worker_token: query.bool("rotateWorkerToken")?,
        manager_token: query.bool("rotateManagerToken")?,
        unlock_key: query.bool("rotateManagerUnlockKey")?,
    };
    let control = api.control()?;
    control.update_cluster(version, cluster_spec(given, ClusterSpec::default())?, rotation).await?;
    api.node.follow_lock();
    done()
}

/// Empty without autolock.
pub async fn unlock_key(State(api): State<Api>) -> Reply {
    let cluster = api.control()?.cluster().await?;
    let unlock_key = cluster.ca.unlock_key.as_ref().map(unlock_key_text).unwrap_or_default();
    ok(&api_swarm::UnlockKey { unlock_key })
}

pub async fn unlock(State(api): State<Api>, Json(given): Json<api_swarm::UnlockKey>) -> Reply {
    if api.node.local().membership != Membership::Locked {
        api.control()?;
        return Err(UnlockError::NotLocked.into());
    }
    let key = parse_unlock_key(&given.unlock_key).map_err(|error| ApiError::invalid(error.to_string()))?;
    api.node.unlock(key).await?;
    done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_what_its_leaving_costs() {
        let costs = |n_reachable, n_unreachable| {
            let text = why_not_leave_of(n_reachable, n_unreachable);
            let text = text.strip_prefix(LEAVING_MANAGER).expect("each begins so").to_owned();
            text.strip_suffix(RESTORE).map_or(text.clone(), str::to_owned)
        };
        let lost = |left, all| {
            format!(
                "Removing this node leaves {left} managers out of {all}. Without a Raft quorum your swarm will be \
                 inaccessible. "
            )
        };
        let last = "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ";
        assert_eq!(costs(1, 0), last);
        assert_eq!(costs(2, 0), lost(1, 2));
        assert_eq!(costs(3, 0), "");
        assert_eq!(costs(3, 1), lost(2, 4));
        assert_eq!(costs(3, 2), lost(2, 5));
        assert_eq!(costs(4, 1), "");
    }
}
