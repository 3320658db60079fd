//! The cluster, both ways.

use control_model::Cluster;
use control_model::spec::ClusterSpec;

use super::{nanoseconds, refuse_unknown, span};
use crate::dto::common::Rest;
use crate::dto::node::TlsInfo;
use crate::dto::swarm as api;
use crate::error::ApiError;

/// The cluster, without its secrets.
pub fn cluster_info(cluster: &Cluster, tls: TlsInfo) -> api::ClusterInfo {
    api::ClusterInfo {
        id: cluster.id.to_string(),
        meta: (&cluster.meta).into(),
        spec: spec(&cluster.spec),
        tls_info: tls,
        root_rotation_in_progress: cluster.ca.rotation.is_some(),
        default_addr_pool: cluster.default_address_pool.iter().map(ToString::to_string).collect(),
        subnet_size: cluster.subnet_size.into(),
        data_path_port: cluster.data_path_port.into(),
    }
}

fn spec(spec: &ClusterSpec) -> api::Spec {
    api::Spec {
        name: spec.name.clone(),
        labels: spec.labels.clone(),
        orchestration: api::OrchestrationConfig {
            task_history_retention_limit: Some(spec.task_history_limit),
        },
        raft: api::RaftConfig {
            snapshot_interval: spec.snapshot_interval,
            keep_old_snapshots: Some(0),
            log_entries_for_slow_followers: spec.log_entries_for_slow_followers,
            election_tick: spec.election_tick,
            heartbeat_tick: spec.heartbeat_tick,
        },
        dispatcher: api::DispatcherConfig { heartbeat_period: nanoseconds(spec.heartbeat_period) },
        ca_config: api::CaConfig {
            node_cert_expiry: nanoseconds(spec.node_cert_expiry),
            force_rotate: spec.force_rotate,
            ..api::CaConfig::default()
        },
        task_defaults: api::TaskDefaults::default(),
        encryption_config: api::EncryptionConfig { auto_lock_managers: spec.autolock },
        rest: Rest::new(),
    }
}

/// The spec that `given` asks for on top of `base`: what it leaves out or gives as 0 stays
/// (moby `convert.MergeSwarmSpecToGRPC`).
pub fn cluster_spec(given: api::Spec, base: ClusterSpec) -> Result<ClusterSpec, ApiError> {
    refuse_unknown(&given.rest, "Spec")?;
    refuse_unknown(&given.ca_config.rest, "Spec.CAConfig")?;
    refuse_unknown(&given.task_defaults.rest, "Spec.TaskDefaults")?;
    if given.raft.keep_old_snapshots.is_some_and(|count| count != 0) {
        return Err(ApiError::unsupported("Spec.Raft.KeepOldSnapshots"));
    }
    let name = match given.name.as_str() {
        "" => base.name,
        "default" => given.name,
        _ => return Err(ApiError::invalid("swarm spec must be named \"default\"")),
    };
    let or = |given: u64, base: u64| if given == 0 { base } else { given };
    let span_or = |given: i64, base, what| if given == 0 { Ok(base) } else { span(given, what) };
    let history = given.orchestration.task_history_retention_limit;
    Ok(ClusterSpec {
        name,
        labels: if given.labels.is_empty() { base.labels } else { given.labels },
        task_history_limit: history.unwrap_or(base.task_history_limit),
        heartbeat_period: span_or(
            given.dispatcher.heartbeat_period,
            base.heartbeat_period,
            "heartbeat period",
        )?,
        node_cert_expiry: span_or(
            given.ca_config.node_cert_expiry,
            base.node_cert_expiry,
            "certificate expiry",
        )?,
        snapshot_interval: or(given.raft.snapshot_interval, base.snapshot_interval),
        log_entries_for_slow_followers: or(
            given.raft.log_entries_for_slow_followers,
            base.log_entries_for_slow_followers,
        ),
        heartbeat_tick: tick(given.raft.heartbeat_tick, base.heartbeat_tick, "Spec.Raft.HeartbeatTick")?,
        election_tick: tick(given.raft.election_tick, base.election_tick, "Spec.Raft.ElectionTick")?,
        autolock: given.encryption_config.auto_lock_managers,
        force_rotate: given.ca_config.force_rotate,
    })
}

/// Times of Raft are the daemon's own: a number that says other ones is refused.
fn tick(given: u32, base: u32, what: &str) -> Result<u32, ApiError> {
    if given == 0 || given == base { Ok(base) } else { Err(ApiError::unsupported(format!("{what} {given}"))) }
}
