//! Our interfaces in the node's namespace: the VXLAN device and the gateway bridge; and host ends that nobody wants.

use std::net::{Ipv4Addr, Ipv6Addr};

use dataplane_model::KernelState;
use dataplane_model::Mac;
use dataplane_model::kernel_state::{Device, LinkName};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_route::link::InfoKind;
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::netlink::{Ipv6Mode, Link, Netlink, VxlanMode};
use super::{NetError, sysctl};

/// Alias of the gateway bridge: its name is Docker's, this tells people that it is ours.
const ALIAS: &str = "meshd";
/// Its device group says the same, and does so from its first moment: the kernel takes no alias when it makes a link, so that of one
/// whose maker died right behind that nobody could say whose it is.
const GROUP: u32 = u32::from_be_bytes(*b"mesh");

pub(super) async fn observe(node: &Netlink, links: &[Link], state: &mut KernelState) -> Result<(), NetError> {
    for link in links {
        let Some(name) = LinkName::new(&link.name) else { continue };
        let device = match link.name.as_str() {
            LinkName::VXLAN => Some(observed_vxlan(link)),
            LinkName::GATEWAY_BRIDGE if is_our_bridge(link) => Some(observed_bridge(node, link).await?),
            _ => None,
        };
        state.devices.extend(device.map(|device| (name, device)));
    }
    Ok(())
}

/// A device that is not as it must be reads as one of another MTU: then it is put right.
fn observed_vxlan(link: &Link) -> Device {
    let VxlanMode { port, collects, over_ipv6 } = link.vxlan.unwrap_or_default();
    let sound = collects && link.is_up && !link.has_arp;
    Device::Vxlan { port, mtu_bytes: if sound { link.mtu_bytes } else { 0 }, over_ipv6 }
}

async fn observed_bridge(node: &Netlink, link: &Link) -> Result<Device, NetError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in node.addresses().await?.into_iter().filter(|address| address.device == link.index) {
        match address.network {
            IpNetwork::V4(network) => v4.push(network),
            IpNetwork::V6(network) => v6.push(network),
        }
    }
    let address6 = match (link.ipv6, v6.as_slice()) {
        (Ipv6Mode::Off, _) => Some(None),
        (Ipv6Mode::Given, [one, other]) if *one == link_local() => Some(Some(*other)),
        (Ipv6Mode::Given, [one, other]) if *other == link_local() => Some(Some(*one)),
        _ => None,
    };
    let nowhere = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).expect("a valid prefix");
    let address = v4.first().filter(|_| link.is_up && address6.is_some()).copied().unwrap_or(nowhere);
    Ok(Device::Bridge { address, address6: address6.flatten(), mtu_bytes: link.mtu_bytes })
}

fn is_our_bridge(link: &Link) -> bool {
    let is_marked = link.group == GROUP || link.alias.as_deref() == Some(ALIAS);
    link.kind == Some(InfoKind::Bridge) && is_marked
}

pub(super) async fn put(node: &Netlink, name: &LinkName, device: &Device) -> Result<(), NetError> {
    match device {
        Device::Vxlan { port, mtu_bytes, over_ipv6 } => {
            let mode = VxlanMode { port: *port, collects: true, over_ipv6: *over_ipv6 };
            put_vxlan(node, name, mode, *mtu_bytes).await
        }
        Device::Bridge { address, address6, mtu_bytes } => {
            put_bridge(node, name, (*address, *address6), *mtu_bytes).await
        }
        // Nobody wants one, so nobody puts one.
        Device::Stray => Ok(()),
    }
}

async fn put_vxlan(node: &Netlink, name: &LinkName, mode: VxlanMode, mtu_bytes: u32) -> Result<(), NetError> {
    let port = mode.port;
    if let Some(link) = node.link(name.as_str()).await?
        && link.vxlan != Some(mode)
    {
        // These are fixed when the device is made.
        node.delete_link(link.index).await?;
    }
    if node.link(name.as_str()).await?.is_none() {
        let message = LinkMessageBuilder::<LinkVxlan>::new(name.as_str())
            .port(port)
            .collect_metadata(true)
            .udp_zero_csum6_rx(mode.over_ipv6)
            .learning(false)
            .build();
        let added = node.handle.link().add(message).execute().await;
        added.map_err(NetError::netlink(format!("make {name}: is UDP port {port} taken?")))?;
    }
    given_ipv6_only(name.as_str())?;
    // Without it the kernel would tell programs no way by IPv6. Nothing but what they let pass comes from this device.
    sysctl::write_if_there(&format!("ipv6/conf/{name}/forwarding"), "1")?;
    // BPF finds endpoints; the kernel must not ask for them.
    let (index, settings) = configure(node, name, mtu_bytes).await?;
    node.set_link(&format!("set up {name}"), settings.arp(false).index(index).up().build()).await
}

async fn put_bridge(
    node: &Netlink,
    name: &LinkName,
    (address, address6): (Ipv4Network, Option<Ipv6Network>),
    mtu_bytes: u32,
) -> Result<(), NetError> {
    match node.link(name.as_str()).await? {
        Some(link) if is_our_bridge(&link) => {}
        Some(_) => return Err(NetError::ForeignLink { name: name.clone() }),
        None => {
            // A fixed MAC: else the bridge would take over that of a port, and change it when the port goes.
            let mac = Mac::of_endpoint(address.ip()).0.to_vec();
            let message = LinkBridge::new(name.as_str()).address(mac).link_group(GROUP).build();
            let added = node.handle.link().add(message).execute().await;
            added.map_err(NetError::netlink(format!("make {name}")))?;
        }
    }
    let (index, settings) = configure(node, name, mtu_bytes).await?;
    match address6 {
        Some(_) => given_ipv6_only(name.as_str())?,
        None => no_ipv6(name.as_str())?,
    }
    node.set_link(&format!("set up {name}"), settings.alias(ALIAS).index(index).up().build()).await?;
    let addresses6 = address6.into_iter().flat_map(|address6| [address6, link_local()]).map(IpNetwork::V6);
    let addresses: Vec<IpNetwork> = addresses6.chain([address.into()]).collect();
    node.set_only_addresses(index, &addresses).await
}

/// The bridge's, where it has IPv6: for packets that are forwarded the kernel asks for neighbours from no other address.
fn link_local() -> Ipv6Network {
    Ipv6Network::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 64).expect("a valid prefix")
}

/// The link's index, and a message that sets its MTU.
async fn configure(
    node: &Netlink,
    name: &LinkName,
    mtu_bytes: u32,
) -> Result<(u32, LinkMessageBuilder<LinkUnspec>), NetError> {
    let link = node.link(name.as_str()).await?.ok_or_else(|| NetError::NoLink { name: name.clone() })?;
    Ok((link.index, LinkUnspec::new_with_index(link.index).mtu(mtu_bytes)))
}

/// No link-local address, no router solicitation: nothing but what BPF or the bridge carries leaves here.
pub(super) fn no_ipv6(link: &str) -> Result<(), NetError> {
    sysctl::write_if_there(&format!("ipv6/conf/{link}/disable_ipv6"), "1")
}

/// IPv6 with the addresses that it is given and no others, not even a link-local one: neighbours are asked for from the
/// address that the packet comes from. Of the calling thread's namespace.
pub(super) fn given_ipv6_only(link: &str) -> Result<(), NetError> {
    // First what keeps it from making addresses, then what would have it make them. Mode 1 makes none (`if_link.h`).
    for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("disable_ipv6", "0")] {
        sysctl::write_if_there(&format!("ipv6/conf/{link}/{key}"), value)?;
    }
    Ok(())
}

pub(super) async fn delete(node: &Netlink, name: &LinkName) -> Result<(), NetError> {
    match node.link(name.as_str()).await? {
        Some(link) if link.name == LinkName::GATEWAY_BRIDGE && !is_our_bridge(&link) => Ok(()),
        Some(link) => node.delete_link(link.index).await,
        None => Ok(()),
    }
}
