//! Sandboxes: a namespace per task, with one veth pair per network and one for the way out.

mod leg;
mod observe;

use std::path::Path;

use dataplane_model::kernel_state::{Leg, SandboxNet};
use rtnetlink::LinkUnspec;

use super::namespace::Namespace;
use super::netlink::Netlink;
use super::{NetError, sysctl};

pub(super) use observe::{ids, observe};

/// Makes the sandbox, or makes it what it should be: of the namespace that lies at `given`, or a new one. Legs that are right
/// stay as they are, with their connections.
pub(super) async fn put(node: &Netlink, path: &Path, given: &Path, net: &SandboxNet) -> Result<(), NetError> {
    let namespace = match Namespace::open(path)? {
        Some(namespace) => namespace,
        None => match Namespace::adopt(path, given, prepare_given)? {
            Some(namespace) => namespace,
            None => Namespace::create(path, prepare)?,
        },
    };
    let inside = Netlink::inside(&namespace)?;
    let result = fill(node, &namespace, &inside, net).await;
    inside.close().await;
    result
}

/// Removes the links, then the name of the namespace. Processes and sockets that are still in it keep an empty shell
/// alive, nothing of the node.
pub(super) async fn delete(path: &Path) -> Result<(), NetError> {
    if let Some(namespace) = Namespace::open(path)? {
        let inside = Netlink::inside(&namespace)?;
        let result = delete_links(&inside, |_| true).await;
        inside.close().await;
        result?;
    }
    Namespace::remove(path)
}

/// Sets what a namespace must have before any interface is in it, and what Docker gives every container.
fn prepare() -> Result<(), NetError> {
    prepare_ways()?;
    sysctl::write("ipv4/ip_forward", "0")?;
    sysctl::write_if_there("ipv4/ip_unprivileged_port_start", "0")?;
    sysctl::write_if_there("ipv4/ping_group_range", "0\t2147483647")
}

/// IPv6 is off until a leg has it, packets may come in by another leg than the one that leads back to their sender.
fn prepare_ways() -> Result<(), NetError> {
    for scope in ["all", "default"] {
        // 2: the source must be reachable somehow (RFC 3704 section 2.4). Strict would drop what the mesh delivers.
        sysctl::write(&format!("ipv4/conf/{scope}/rp_filter"), "2")?;
        sysctl::write(&format!("ipv4/conf/{scope}/accept_redirects"), "0")?;
        sysctl::write_if_there(&format!("ipv6/conf/{scope}/accept_redirects"), "0")?;
    }
    sysctl::write_if_there("ipv6/conf/default/disable_ipv6", "1")
}

/// Of one that has had another master, who may have turned IPv6 off altogether. All else is what its task asked for.
fn prepare_given() -> Result<(), NetError> {
    sysctl::write_if_there("ipv6/conf/all/disable_ipv6", "0")?;
    sysctl::write_if_there("ipv6/conf/lo/disable_ipv6", "0")?;
    prepare_ways()
}

async fn fill(
    node: &Netlink,
    namespace: &Namespace,
    inside: &Netlink,
    net: &SandboxNet,
) -> Result<(), NetError> {
    if let Some(lo) = inside.link("lo").await? {
        inside.set_link("set up lo", LinkUnspec::new_with_index(lo.index).up().build()).await?;
    }
    let wanted = |name: &str| net.legs.iter().any(|leg| leg.name.as_str() == name);
    delete_links(inside, |name| !wanted(name)).await?;
    for leg in &net.legs {
        leg::put(node, namespace, inside, leg).await?;
    }
    delete_stale_rules(inside, &net.legs).await
}

/// Deletes the veth pairs whose names inside are meant.
async fn delete_links(inside: &Netlink, is_meant: impl Fn(&str) -> bool) -> Result<(), NetError> {
    let links = inside.links().await?;
    for link in links.iter().filter(|link| link.is_veth() && is_meant(&link.name)) {
        inside.delete_link(link.index).await?;
    }
    Ok(())
}

async fn delete_stale_rules(inside: &Netlink, legs: &[Leg]) -> Result<(), NetError> {
    for rule in inside.source_rules().await? {
        let is_wanted = |leg: &Leg| leg::sources(leg).any(|source| leg::is_rule_of(&rule, source, leg));
        if !legs.iter().any(is_wanted) {
            inside.delete_rule(rule.message).await?;
        }
    }
    Ok(())
}
