//! `/_ping`, `/version`, `/info`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use control_manager::clock;
use control_model::log_driver::LOG_DRIVERS;
use control_model::spec::Role;
use http::{Method, StatusCode, header};

use crate::context::Api;
use crate::convert::cluster::cluster_info;
use crate::dto::common::rfc3339;
use crate::dto::{swarm as api_swarm, system as api};
use crate::engine::{Container, Image};
use crate::host::{Machine, go_architecture};
use crate::node::{HostFacts, LocalState, Membership};
use crate::reply::{Reply, ok};
use crate::tls::tls_info;
use crate::version::{ApiVersion, MAX_API_VERSION, MIN_API_VERSION};

/// The registry that references without a domain mean.
const INDEX: &str = "https://index.docker.io/v1/";

/// What clients ask first: versions in headers, and this node's swarm state.
pub async fn ping(State(api): State<Api>, method: Method) -> Response {
    let local = api.node.local();
    let swarm = match local.membership {
        Membership::Active if local.is_manager => "active/manager",
        Membership::Active => "active/worker",
        other => membership_word(other),
    };
    let version = newest(&api).to_string();
    let server = format!("Docker/{} (linux)", api.node.host().version);
    let headers = [
        ("Api-Version", version.as_str()),
        ("Ostype", "linux"),
        ("Docker-Experimental", "false"),
        // No builder: `1` is the classic one, which clients then find missing when they build.
        ("Builder-Version", "1"),
        ("Swarm", swarm),
        ("Server", server.as_str()),
        ("Cache-Control", "no-cache, no-store, must-revalidate"),
        ("Pragma", "no-cache"),
    ];
    let content_type = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    let body = if method == Method::HEAD { "" } else { "OK" };
    (StatusCode::OK, headers, content_type, body).into_response()
}

/// The newest version of the API that is spoken here: no newer than that of an engine which has a part in it.
fn newest(api: &Api) -> ApiVersion {
    api.node.passage().map_or(MAX_API_VERSION, |passage| passage.newest().min(MAX_API_VERSION))
}

fn membership_word(membership: Membership) -> &'static str {
    match membership {
        Membership::Inactive => "inactive",
        Membership::Pending => "pending",
        Membership::Active => "active",
        Membership::Error => "error",
        Membership::Locked => "locked",
    }
}

/// `docker version`.
pub async fn version(State(api): State<Api>) -> Reply {
    let (host, machine) = (api.node.host(), Machine::read());
    let arch = go_architecture(&machine.architecture).to_owned();
    let details = BTreeMap::from([
        ("ApiVersion".to_owned(), newest(&api).to_string()),
        ("Experimental".to_owned(), "false".to_owned()),
        ("Arch".to_owned(), arch.clone()),
        ("MinAPIVersion".to_owned(), MIN_API_VERSION.to_string()),
        ("Os".to_owned(), "linux".to_owned()),
        ("KernelVersion".to_owned(), machine.kernel_version.clone()),
    ]);
    ok(&api::Version {
        platform: api::PlatformName { name: "meshd".into() },
        components: vec![api::Component { name: "Engine".into(), version: host.version.clone(), details }],
        version: host.version,
        api_version: newest(&api).to_string(),
        min_api_version: MIN_API_VERSION.to_string(),
        git_commit: String::new(),
        go_version: String::new(),
        os: "linux".into(),
        arch,
        kernel_version: machine.kernel_version,
        build_time: String::new(),
    })
}

/// `docker info`.
pub async fn info(State(api): State<Api>) -> Reply {
    let engine = api.local_engine()?;
    // A node whose images can't be read still tells the rest, and says so among its warnings.
    let (images, containers) = (engine.images().await, engine.containers().await);
    let mut host = api.node.host();
    let errors = [images.as_ref().err(), containers.as_ref().err()];
    host.warnings.extend(errors.into_iter().flatten().map(|error| format!("WARNING: {error}")));
    let facts = Facts {
        images: images.unwrap_or_default(),
        containers: containers.unwrap_or_default(),
        machine: Machine::read(),
        host,
        swarm: swarm_info(&api),
    };
    ok(&facts.into_info())
}

struct Facts {
    host: HostFacts,
    machine: Machine,
    images: Vec<Image>,
    containers: Vec<Container>,
    swarm: api_swarm::Info,
}

impl Facts {
    fn into_info(self) -> api::Info {
        let Self { host, machine, images, containers, swarm } = self;
        let n_running = containers.iter().filter(|container| container.running).count();
        let runtimes = BTreeMap::from([(host.runtime.clone(), api::Runtime { path: host.runtime_path })]);
        let warnings = (!host.warnings.is_empty()).then_some(host.warnings);
        api::Info {
            id: swarm.node_id.clone(),
            containers: containers.len(),
            containers_running: n_running,
            containers_paused: 0,
            containers_stopped: containers.len() - n_running,
            images: images.len(),
            driver: "overlayfs".into(),
            driver_status: Vec::new(),
            plugins: plugins(),
            memory_limit: true,
            swap_limit: machine.swap_limit,
            cpu_cfs_period: true,
            cpu_cfs_quota: true,
            cpu_shares: true,
            cpu_set: true,
            pids_limit: true,
            ipv4_forwarding: machine.ipv4_forwarding,
            bridge_nf_iptables: true,
            bridge_nf_ip6tables: true,
            debug: false,
            n_fd: machine.n_fd,
            oom_kill_disable: machine.cgroup_version == 1,
            n_goroutines: 0,
            system_time: rfc3339(Some(clock::now())),
            logging_driver: host.log_driver,
            cgroup_driver: "cgroupfs".into(),
            cgroup_version: machine.cgroup_version.to_string(),
            n_events_listener: 0,
            kernel_version: machine.kernel_version,
            operating_system: machine.operating_system,
            os_version: machine.os_version,
            os_type: "linux".into(),
            architecture: machine.architecture,
            index_server_address: INDEX.into(),
            registry_config: registry_config(&host.insecure_registries),
            n_cpu: machine.n_cpu,
            mem_total: machine.memory_bytes,
            generic_resources: None,
            docker_root_dir: host.root_dir,
            http_proxy: String::new(),
            https_proxy: String::new(),
            no_proxy: String::new(),
            name: host.hostname,
            labels: host.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
            experimental_build: false,
            server_version: host.version,
            runtimes,
            default_runtime: host.runtime,
            swarm,
            live_restore_enabled: true,
            isolation: String::new(),
            init_binary: String::new(),
            containerd_commit: api::Commit::default(),
            runc_commit: api::Commit::default(),
            init_commit: api::Commit::default(),
            security_options: Vec::new(),
            cdi_spec_dirs: Vec::new(),
            warnings,
        }
    }
}

fn plugins() -> api::Plugins {
    api::Plugins {
        volume: vec!["local".into()],
        network: vec!["overlay".into()],
        authorization: None,
        log: LOG_DRIVERS.map(String::from).into(),
    }
}

fn registry_config(insecure: &[String]) -> api::RegistryConfig {
    let index = |name: &str, secure: bool, official: bool| {
        (name.to_owned(), api::IndexConfig { name: name.to_owned(), mirrors: Vec::new(), secure, official })
    };
    let (cidrs, names): (Vec<_>, Vec<_>) = insecure.iter().partition(|registry| registry.contains('/'));
    let mut index_configs: BTreeMap<_, _> = names.iter().map(|name| index(name, false, false)).collect();
    index_configs.extend([index("docker.io", true, true)]);
    api::RegistryConfig {
        insecure_registry_cidrs: cidrs.into_iter().cloned().collect(),
        index_configs,
        mirrors: None,
    }
}

/// From what this node has at hand: `docker info` answers without a leader too.
pub(super) fn swarm_info(api: &Api) -> api_swarm::Info {
    let local = api.node.local();
    let state = api.node.store().map(|store| store.state());
    let cluster = state.as_ref().and_then(|state| state.cluster());
    let nodes = state.as_ref().map_or(0, |state| state.nodes().len());
    let managers = state
        .as_ref()
        .map_or(0, |state| state.nodes().iter().filter(|node| node.spec.role == Role::Manager).count());
    api_swarm::Info {
        node_id: local.node.map(|id| id.to_string()).unwrap_or_default(),
        node_addr: local.addr.map(|addr| addr.to_string()).unwrap_or_default(),
        local_node_state: membership_word(local.membership),
        control_available: state.is_some(),
        remote_managers: remote_managers(&local),
        error: local.error,
        nodes,
        managers,
        cluster: cluster.map(|cluster| cluster_info(cluster, tls_info(cluster))),
    }
}

fn remote_managers(local: &LocalState) -> Option<Vec<api_swarm::Peer>> {
    let peers = local.remote_managers.iter();
    let peers: Vec<_> =
        peers.map(|m| api_swarm::Peer { node_id: m.node.to_string(), addr: m.addr.clone() }).collect();
    (!peers.is_empty()).then_some(peers)
}
