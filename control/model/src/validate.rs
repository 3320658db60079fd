//! What a spec must obey before it becomes state, in Docker's words (swarmkit `manager/controlapi`).
//!
//! Pure: only the spec itself is looked at. What depends on other objects is checked by the manager's operations.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;

use crate::constraint;
use crate::families::{address6, first_host, longest_prefix6};
use crate::id::{NodeId, ServiceId, TaskId};
use crate::log_driver::LogDriverError;
use crate::object::{Slot, Task};
use crate::spec::{
    ClusterSpec, ContainerSpec, EndpointMode, EndpointSpec, IpamConfig, Mount, MountKind, NetworkSpec,
    PublishMode, Resources, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
};
use crate::template::{TemplateContext, TemplateError};
use crate::validate_dependency::{DependencyError, validate_dependency_files};
use crate::validate_image::parse_image_reference;

/// Longest name of a service or network: a DNS label (RFC 1035 section 2.3.4).
pub const MAX_NAME_LEN: usize = 63;
/// Smallest CPU amount: 1/1000 of a CPU, in 10^-9 CPUs.
const MIN_NANO_CPUS: i64 = 1_000_000;
/// Smallest memory amount, bytes.
const MIN_MEMORY_BYTES: i64 = 4 << 20;
/// Longest IPv4 prefix of a subnet: a gateway and one task need addresses, besides the first and the last.
const MAX_SUBNET_PREFIX: u8 = 30;
/// The least MTU of a link that carries IPv6 (RFC 8200 section 5).
const IPV6_MIN_MTU_BYTES: u32 = 1280;
/// Most replicas: Docker's CLI and proto carry the number as a signed 64-bit integer.
const MAX_REPLICAS: u64 = i64::MAX as u64;

/// Why a spec is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    #[error(transparent)]
    LogDriver(#[from] LogDriverError),
    #[error("meta: name must be provided")]
    NameMissing,
    #[error("name must be valid as a DNS name component")]
    NameNotDns,
    #[error("name must be 63 characters or fewer")]
    NameTooLong,
    #[error("invalid cpu value {0}: Must be at least 0.001")]
    CpuTooSmall(f64),
    #[error("invalid memory value {0}: Must be at least 4MiB")]
    MemoryTooSmall(i64),
    #[error("TaskSpec: {0} cannot be negative")]
    NegativeDuration(&'static str),
    #[error("TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")]
    FailureRatio,
    /// The constraint parser's sentence.
    #[error("{0}")]
    Constraint(String),
    #[error("ContainerSpec: image reference must be provided")]
    ImageMissing,
    #[error("ContainerSpec: {0:?} is not a valid repository/tag")]
    ImageReference(String),
    #[error("ContainerSpec: duplicate mount point: {0}")]
    DuplicateMount(String),
    #[error("invalid mount config for type {kind:?}: {problem}")]
    Mount { kind: &'static str, problem: String },
    #[error("invalid environment variable: {0}")]
    Environment(String),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Dependency(#[from] DependencyError),
    #[error("Number of replicas must be non-negative")]
    NegativeReplicas,
    #[error("Maximum concurrent jobs must not be negative")]
    NegativeConcurrent,
    #[error("Total completed jobs must not be negative")]
    NegativeCompletions,
    #[error("Jobs may not have an update config")]
    JobUpdate,
    #[error("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")]
    IngressPortWithDnsrr,
    #[error("EndpointSpec: duplicate published ports provided")]
    DuplicatePorts,
    #[error("EndpointSpec: target port must be between 1 and 65535")]
    TargetPort,
    #[error("label mesh.dsr: {0:?} is neither true nor false")]
    Dsr(String),
    #[error("label mesh.slow-start: {0:?} is no time between 1s and 1h (like 30s or 1m30s)")]
    SlowStart(String),
    #[error(
        "label mesh.rebalance: {0:?} is neither a number of tasks (like 1) nor a share of them (like 10%)"
    )]
    Rebalance(String),
    #[error("ingress network cannot be attachable")]
    AttachableIngress,
    #[error("ipam configuration: subnet {0} does not contain range {1}")]
    RangeOutside(IpNetwork, IpNetwork),
    #[error("ipam configuration: subnet {0} does not contain gateway {1}")]
    GatewayOutside(IpNetwork, IpAddr),
    #[error("ipam configuration: subnet {0} needs IPv6 in the network (--ipv6)")]
    NoIpv6(IpNetwork),
    #[error("ipam configuration: more than one {0} subnet: a network has at most one of each family")]
    SeveralSubnets(&'static str),
    #[error(
        "ipam configuration: subnet {subnet6} is too small beside {subnet}: an endpoint has the same host number in both, so its prefix may have {most} bits at most"
    )]
    HostNumbers { subnet6: IpNetwork, subnet: IpNetwork, most: u8 },
    #[error(
        "ipam configuration: gateway {given} is not the one that goes with the IPv4 gateway, which has the same host number: leave it out, or use {wanted}"
    )]
    Gateway6 { given: IpAddr, wanted: IpAddr },
    #[error("ipam configuration: no range in IPv6 subnet {0}: its addresses follow the IPv4 ones")]
    Range6(IpNetwork),
    #[error("MTU {0} is too small for IPv6: 1280 is the least (RFC 8200 section 5)")]
    Mtu6(u32),
    /// What is not an address or a subnet, and as what it was given.
    #[error("ipam configuration: {0}")]
    Ipam(String),
    #[error("modification of cluster name is not allowed")]
    ClusterName,
    #[error("minimum certificate expiry time is: 1h0m0s")]
    CertificateExpiry,
    #[error("minimum heartbeat period is: 1s")]
    HeartbeatPeriod,
}

/// Checks a service's spec by itself.
pub fn validate_service(spec: &ServiceSpec) -> Result<(), SpecError> {
    validate_name(&spec.name)?;
    validate_task(&spec.task)?;
    validate_mode(spec.mode)?;
    if spec.mode.is_job() && spec.has_update {
        return Err(SpecError::JobUpdate);
    }
    validate_update(&spec.update)?;
    validate_update(&spec.rollback)?;
    if spec.dsr().is_none() {
        return Err(SpecError::Dsr(spec.labels[ServiceSpec::DSR_LABEL].clone()));
    }
    if let Some(value) = spec.labels.get(ServiceSpec::SLOW_START_LABEL)
        && spec.slow_start().is_none()
    {
        return Err(SpecError::SlowStart(value.clone()));
    }
    if let Some(value) = spec.labels.get(ServiceSpec::REBALANCE_LABEL)
        && spec.rebalance().is_none()
    {
        return Err(SpecError::Rebalance(value.clone()));
    }
    validate_endpoint(&spec.endpoint)
}

/// Numbers that would be negative to who reads them as signed ones.
fn validate_mode(mode: ServiceMode) -> Result<(), SpecError> {
    match mode {
        ServiceMode::Replicated { replicas } if replicas > MAX_REPLICAS => Err(SpecError::NegativeReplicas),
        ServiceMode::ReplicatedJob { max_concurrent, .. } if max_concurrent > MAX_REPLICAS => {
            Err(SpecError::NegativeConcurrent)
        }
        ServiceMode::ReplicatedJob { total_completions, .. } if total_completions > MAX_REPLICAS => {
            Err(SpecError::NegativeCompletions)
        }
        _ => Ok(()),
    }
}

/// Checks a network's spec by itself.
pub fn validate_network(spec: &NetworkSpec) -> Result<(), SpecError> {
    if spec.attachable && spec.ingress {
        return Err(SpecError::AttachableIngress);
    }
    validate_name(&spec.name)?;
    spec.ipam.iter().try_for_each(validate_ipam)?;
    validate_families(spec)
}

/// What the IPv6 side must obey beside the IPv4 one. A subnet that is still to be chosen is looked at when it is.
fn validate_families(spec: &NetworkSpec) -> Result<(), SpecError> {
    let (v4, v6): (Vec<&IpamConfig>, Vec<_>) = spec.ipam.iter().partition(|ipam| ipam.subnet.is_ipv4());
    if v4.len() > 1 || v6.len() > 1 {
        return Err(SpecError::SeveralSubnets(if v4.len() > 1 { "IPv4" } else { "IPv6" }));
    }
    if let Some(mtu_bytes) = spec.mtu_bytes().filter(|mtu| spec.ipv6 && *mtu < IPV6_MIN_MTU_BYTES) {
        return Err(SpecError::Mtu6(mtu_bytes));
    }
    let Some(given) = v6.first() else { return Ok(()) };
    if !spec.ipv6 {
        return Err(SpecError::NoIpv6(given.subnet));
    }
    if given.range.is_some() {
        return Err(SpecError::Range6(given.subnet));
    }
    let Some(beside) = v4.first() else { return Ok(()) };
    check_host_numbers(beside, given)
}

/// Does each endpoint of `v4` have an address in `v6`, and is the gateway the right one?
pub fn check_host_numbers(v4: &IpamConfig, v6: &IpamConfig) -> Result<(), SpecError> {
    let (IpNetwork::V4(subnet), IpNetwork::V6(subnet6)) = (v4.subnet, v6.subnet) else { return Ok(()) };
    let most = longest_prefix6(subnet.prefix());
    if subnet6.prefix() > most {
        return Err(SpecError::HostNumbers { subnet6: v6.subnet, subnet: v4.subnet, most });
    }
    let gateway = match v4.gateway {
        Some(IpAddr::V4(gateway)) => gateway,
        _ => first_host(subnet),
    };
    let wanted = IpAddr::V6(address6(subnet, subnet6, gateway));
    match v6.gateway {
        Some(given) if given != wanted => Err(SpecError::Gateway6 { given, wanted }),
        _ => Ok(()),
    }
}

/// Checks the cluster's spec by itself.
pub fn validate_cluster(spec: &ClusterSpec) -> Result<(), SpecError> {
    const MIN_CERTIFICATE_EXPIRY: std::time::Duration = std::time::Duration::from_hours(1);
    if spec.name != ClusterSpec::default().name {
        return Err(SpecError::ClusterName);
    }
    if spec.node_cert_expiry < MIN_CERTIFICATE_EXPIRY {
        return Err(SpecError::CertificateExpiry);
    }
    if spec.heartbeat_period < ClusterSpec::MIN_HEARTBEAT_PERIOD {
        return Err(SpecError::HeartbeatPeriod);
    }
    Ok(())
}

/// Names of services and networks: `^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`, at most 63 bytes.
pub fn validate_name(name: &str) -> Result<(), SpecError> {
    if name.is_empty() {
        return Err(SpecError::NameMissing);
    }
    let alphanumeric = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    let inner = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !inner || !alphanumeric(name.bytes().next()) || !alphanumeric(name.bytes().next_back()) {
        return Err(SpecError::NameNotDns);
    }
    if name.len() > MAX_NAME_LEN { Err(SpecError::NameTooLong) } else { Ok(()) }
}

fn validate_task(spec: &TaskSpec) -> Result<(), SpecError> {
    validate_resources(&spec.resources.limits)?;
    validate_resources(&spec.resources.reservations)?;
    constraint::parse_constraints(&spec.placement.constraints).map_err(SpecError::Constraint)?;
    if let Some(driver) = &spec.log_driver {
        driver.check()?;
    }
    let container = &spec.container;
    if container.image.is_empty() {
        return Err(SpecError::ImageMissing);
    }
    if parse_image_reference(&container.image).is_none() {
        return Err(SpecError::ImageReference(container.image.clone()));
    }
    if let Some(bad) = container.env.iter().find(|e| e.is_empty() || e.starts_with('=')) {
        return Err(SpecError::Environment(bad.clone()));
    }
    validate_mounts(&container.mounts)?;
    validate_dependency_files(&container.dependencies)?;
    validate_placeholders(container)
}

/// Tries the placeholders on a task that stands for any: what no node could expand is refused before a node is asked.
fn validate_placeholders(container: &ContainerSpec) -> Result<(), SpecError> {
    let any = Slot::Node(NodeId::from_bits(0));
    let task = Task::new(TaskId::from_bits(0), ServiceId::from_bits(0), any);
    let context = TemplateContext { task: &task, node_hostname: "", node_os: "", node_architecture: "" };
    let sources = container.mounts.iter().map(|mount| &mount.source);
    let texts = [&container.hostname].into_iter().chain(&container.env).chain(sources);
    for text in texts {
        context.expand(text)?;
    }
    Ok(())
}

fn validate_resources(amounts: &Resources) -> Result<(), SpecError> {
    if amounts.nano_cpus != 0 && amounts.nano_cpus < MIN_NANO_CPUS {
        #[expect(clippy::cast_precision_loss, reason = "only shown")]
        return Err(SpecError::CpuTooSmall(amounts.nano_cpus as f64 / 1e9));
    }
    if amounts.memory_bytes != 0 && amounts.memory_bytes < MIN_MEMORY_BYTES {
        return Err(SpecError::MemoryTooSmall(amounts.memory_bytes));
    }
    Ok(())
}

fn validate_mounts(mounts: &[Mount]) -> Result<(), SpecError> {
    let mut targets = BTreeSet::new();
    for mount in mounts {
        validate_mount(mount)?;
        // As Docker cleans it: `/a/`, `/a/.` and `//a` are one place.
        let target: PathBuf = Path::new(&mount.target).components().collect();
        if !targets.insert(target.clone()) {
            return Err(SpecError::DuplicateMount(target.display().to_string()));
        }
    }
    Ok(())
}

/// Texts of moby `volume/mounts/linux_parser.go`.
fn validate_mount(mount: &Mount) -> Result<(), SpecError> {
    let kind = match mount.kind {
        MountKind::Bind => "bind",
        MountKind::Volume => "volume",
        MountKind::Tmpfs => "tmpfs",
    };
    let refuse = |problem: String| Err(SpecError::Mount { kind, problem });
    if mount.target.is_empty() {
        return refuse("field Target must not be empty".into());
    }
    if !mount.target.starts_with('/') {
        return refuse(format!("invalid mount path: '{}' mount path must be absolute", mount.target));
    }
    if mount.target.trim_end_matches('/').is_empty() {
        return refuse("invalid specification: destination can't be '/'".into());
    }
    match mount.kind {
        MountKind::Bind if mount.source.is_empty() => refuse("field Source must not be empty".into()),
        MountKind::Bind if !mount.source.starts_with('/') => {
            refuse(format!("invalid mount path: '{}' mount path must be absolute", mount.source))
        }
        MountKind::Tmpfs if !mount.source.is_empty() => refuse("field Source must not be specified".into()),
        _ => Ok(()),
    }
}

fn validate_update(config: &UpdateConfig) -> Result<(), SpecError> {
    if (0.0..=1.0).contains(&config.max_failure_ratio) { Ok(()) } else { Err(SpecError::FailureRatio) }
}

fn validate_endpoint(spec: &EndpointSpec) -> Result<(), SpecError> {
    let mut published = BTreeSet::new();
    for port in &spec.ports {
        if port.target == 0 {
            return Err(SpecError::TargetPort);
        }
        if spec.mode == EndpointMode::Dnsrr && port.mode == PublishMode::Ingress {
            return Err(SpecError::IngressPortWithDnsrr);
        }
        if port.published != 0 && !published.insert((port.published, port.protocol)) {
            return Err(SpecError::DuplicatePorts);
        }
    }
    Ok(())
}

fn validate_ipam(config: &IpamConfig) -> Result<(), SpecError> {
    let (first, prefix) = (config.subnet.network(), config.subnet.prefix());
    let is_narrow = config.subnet.is_ipv4() && prefix > MAX_SUBNET_PREFIX;
    let is_link_local = matches!(first, IpAddr::V6(first) if first.is_unicast_link_local());
    if prefix == 0 || is_narrow || is_link_local || first.is_multicast() || first.is_loopback() {
        return Err(SpecError::Ipam(format!("invalid subnet {}", config.subnet)));
    }
    if let Some(range) = config.range
        && !(config.subnet.contains(range.network()) && range.prefix() >= config.subnet.prefix())
    {
        return Err(SpecError::RangeOutside(config.subnet, range));
    }
    if let Some(gateway) = config.gateway
        && !config.subnet.contains(gateway)
    {
        return Err(SpecError::GatewayOutside(config.subnet, gateway));
    }
    Ok(())
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
