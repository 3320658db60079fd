//! Networks, both ways.

use std::collections::BTreeMap;
use std::net::IpAddr;

use control_model::Network;
use control_model::spec::{IpamConfig, NetworkSpec};
use ipnetwork::IpNetwork;

use super::refuse_unknown;
use crate::dto::common::Time;
use crate::dto::network as api;
use crate::error::ApiError;

const DRIVER: &str = "overlay";
/// Driver option under which Docker shows a network's VNIs.
const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// Smallest MTU that IPv4 allows (RFC 791 section 3.1), and the largest of Linux's veth.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

/// The network, without what only this node knows of it.
pub fn network(network: &Network) -> api::Network {
    api::Network {
        name: network.spec.name.clone(),
        id: network.id.to_string(),
        created: Time(Some(network.meta.created_at)),
        scope: "swarm",
        driver: DRIVER,
        enable_ipv4: true,
        enable_ipv6: network.spec.ipv6,
        ipam: api::Ipam {
            driver: "default".into(),
            options: None,
            config: allocated(network).map(ipam_config).collect(),
        },
        internal: network.spec.internal,
        attachable: network.spec.attachable,
        ingress: network.spec.ingress,
        config_from: api::ConfigReference::default(),
        config_only: false,
        containers: None,
        options: Some(driver_options(network)),
        labels: Some(network.spec.labels.clone()),
        peers: Vec::new(),
        services: BTreeMap::new(),
    }
}

/// The subnets that the network has, or has asked for. Those that the user knows of: the routing mesh's IPv6 prefix is
/// not shown where nobody asked for it, else every tool would take its tasks to have one more address.
fn allocated(network: &Network) -> impl Iterator<Item = &IpamConfig> {
    let ipam = network.state.as_ref().map_or(&network.spec.ipam, |state| &state.ipam);
    ipam.iter().filter(|ipam| ipam.subnet.is_ipv4() || network.spec.ipv6)
}

/// The IPv6 gateway of such a network.
pub fn gateway6(network: &Network) -> Option<IpAddr> {
    allocated(network).find(|ipam| ipam.subnet.is_ipv6())?.gateway
}

fn driver_options(network: &Network) -> BTreeMap<String, String> {
    let mut options = network.spec.options.clone();
    if let Some(state) = &network.state {
        options.insert(VXLAN_IDS.into(), state.vni.to_string());
    }
    options
}

fn ipam_config(config: &IpamConfig) -> api::IpamConfig {
    api::IpamConfig {
        subnet: config.subnet.to_string(),
        ip_range: config.range.map(|range| range.to_string()).unwrap_or_default(),
        gateway: config.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
        auxiliary_addresses: BTreeMap::new(),
    }
}

/// The network as tasks show it.
pub fn attached_network(network: &Network) -> api::AttachedNetwork {
    let driver = api::Driver { name: DRIVER, options: network.spec.options.clone() };
    let ipam_driver = || api::Driver { name: "default", options: BTreeMap::new() };
    let given = network.spec.ipam.iter().map(swarm_ipam_config).collect();
    let allocated = allocated(network).map(swarm_ipam_config).collect();
    api::AttachedNetwork {
        id: network.id.to_string(),
        meta: (&network.meta).into(),
        spec: api::NetworkSpec {
            name: network.spec.name.clone(),
            labels: network.spec.labels.clone(),
            driver_configuration: driver,
            internal: network.spec.internal,
            attachable: network.spec.attachable,
            ingress: network.spec.ingress,
            ipv6_enabled: network.spec.ipv6,
            ipam_options: api::IpamOptions { driver: ipam_driver(), configs: given },
            scope: "swarm",
        },
        driver_state: api::Driver { name: DRIVER, options: driver_options(network) },
        ipam_options: api::IpamOptions { driver: ipam_driver(), configs: allocated },
    }
}

fn swarm_ipam_config(config: &IpamConfig) -> api::SwarmIpamConfig {
    api::SwarmIpamConfig {
        subnet: config.subnet.to_string(),
        range: config.range.map(|range| range.to_string()).unwrap_or_default(),
        gateway: config.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
    }
}

/// The spec that `given` asks for. Only what the data plane does is taken.
pub fn network_spec(given: api::CreateRequest) -> Result<NetworkSpec, ApiError> {
    refuse_unknown(&given.rest, "network")?;
    if given.driver != DRIVER {
        let driver = if given.driver.is_empty() { "bridge" } else { &given.driver };
        return Err(ApiError::unsupported(format!("network driver {driver} (use -d overlay)")));
    }
    if !matches!(given.scope.as_str(), "" | "swarm" | "global") {
        return Err(ApiError::invalid(format!("an overlay network has scope swarm, not {}", given.scope)));
    }
    if given.enable_ipv4 == Some(false) {
        return Err(ApiError::unsupported("a network without IPv4"));
    }
    Ok(NetworkSpec {
        options: options(given.options)?,
        ipam: ipam(given.ipam)?,
        name: given.name,
        labels: given.labels,
        internal: given.internal,
        attachable: given.attachable,
        ingress: given.ingress,
        ipv6: given.enable_ipv6 == Some(true),
    })
}

fn options(given: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    for (key, value) in &given {
        if key != NetworkSpec::MTU_OPTION {
            return Err(ApiError::unsupported(format!("network option {key}")));
        }
        if !value.parse().is_ok_and(|mtu: u32| MTU_RANGE.contains(&mtu)) {
            return Err(ApiError::invalid(format!("invalid MTU {value:?}: {MTU_RANGE:?} bytes")));
        }
    }
    Ok(given)
}

fn ipam(given: api::Ipam) -> Result<Vec<IpamConfig>, ApiError> {
    if !matches!(given.driver.as_str(), "" | "default") {
        return Err(ApiError::invalid("invalid IPAM specified"));
    }
    if given.options.is_some_and(|options| !options.is_empty()) {
        return Err(ApiError::unsupported("network IPAM options"));
    }
    // Go's clients send one empty config where they mean none.
    let configs: Vec<_> = given.config.into_iter().filter(|c| *c != api::IpamConfig::default()).collect();
    configs.iter().map(one_ipam).collect()
}

fn one_ipam(given: &api::IpamConfig) -> Result<IpamConfig, ApiError> {
    let invalid = |what: &str, text: &str| {
        ApiError::from(control_manager::control::ControlError::Spec(
            control_model::validate::SpecError::Ipam(format!("invalid {what} {text}")),
        ))
    };
    if !given.auxiliary_addresses.is_empty() {
        return Err(ApiError::unsupported("auxiliary addresses in a network"));
    }
    let network = |what: &str, text: &str| match text.parse::<IpNetwork>() {
        // Docker, too, takes the subnet of an address within it.
        Ok(network) if text.contains('/') => {
            IpNetwork::new(network.network(), network.prefix()).map_err(|_| invalid(what, text))
        }
        _ => Err(invalid(what, text)),
    };
    let given_or = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let gateway = given_or(&given.gateway)
        .map(|text| text.parse::<IpAddr>().map_err(|_| invalid("gateway", &text)))
        .transpose()?;
    Ok(IpamConfig {
        subnet: network("subnet", &given.subnet)?,
        range: given_or(&given.ip_range).map(|text| network("range", &text)).transpose()?,
        gateway,
    })
}
