//! The lab's wires: a bridge in a namespace of its own, a veth pair to every node and to the client.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::process::{run, try_run};
use crate::state::{LabState, address6};

const BRIDGE: &str = "br0";

/// A command that runs inside a network namespace. Only the network namespace changes: `/sys` stays the host's, so
/// that cgroups and pinned BPF objects remain visible.
pub(crate) fn command_in(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
    let path = format!("/run/netns/{namespace}");
    let file = File::open(&path).with_context(|| format!("no namespace {path}"))?;
    let mut command = Command::new(program);
    // SAFETY: setns is async-signal-safe, and the closure touches nothing but its own file.
    unsafe {
        command.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(Into::into));
    }
    Ok(command)
}

/// Moves the calling thread into a network namespace, for good.
pub(crate) fn enter(namespace: &str) -> Result<()> {
    let path = format!("/run/netns/{namespace}");
    let file = File::open(&path).with_context(|| format!("no namespace {path}"))?;
    setns(&file, CloneFlags::CLONE_NEWNET).with_context(|| format!("can't enter {path}"))
}

/// Makes the namespaces and links. Existing ones stay as they are.
pub(crate) fn up(lab: &LabState) -> Result<()> {
    let bridge_namespace = lab.bridge_namespace();
    add_namespace(&bridge_namespace)?;
    if !link_exists(&bridge_namespace, BRIDGE)? {
        ip(&bridge_namespace, &["link", "add", BRIDGE, "type", "bridge", "forward_delay", "0"])?;
        ip(&bridge_namespace, &["link", "set", BRIDGE, "up"])?;
    }
    for node in &lab.nodes {
        plug(&bridge_namespace, &node.name, node.address, !lab.is_ipv6_only)?;
        if lab.wants_xdp() {
            prepare_for_xdp(&bridge_namespace, &port(&node.name))?;
        }
    }
    plug(&bridge_namespace, &lab.client_namespace(), lab.client_address(), true)
}

/// Deletes the namespaces, and with them all that is inside.
pub(crate) fn down(lab: &LabState) -> Result<()> {
    for namespace in
        lab.nodes.iter().map(|n| n.name.clone()).chain([lab.client_namespace(), lab.bridge_namespace()])
    {
        if namespace_exists(&namespace) {
            run("ip", &["netns", "del", &namespace])?;
        }
    }
    Ok(())
}

/// Pulls the node's plug (`up = false`), or puts it back.
pub(crate) fn set_plug(lab: &LabState, node: &str, up: bool) -> Result<()> {
    ip(&lab.bridge_namespace(), &["link", "set", &port(node), if up { "up" } else { "down" }])
}

/// A direction of a node's cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What the node sends.
    Out,
    /// What is sent to it.
    In,
}

/// Lets nothing more through in one direction.
pub(crate) fn cut_way(lab: &LabState, node: &str, way: Way) -> Result<()> {
    let port = port(node);
    // Seen from the bridge's end.
    let hook = if way == Way::Out { "ingress" } else { "egress" };
    let script = format!(
        "add table netdev cut-{port}; \
         add chain netdev cut-{port} way {{ type filter hook {hook} device {port} priority 0; }}; \
         add rule netdev cut-{port} way drop"
    );
    nft(lab, &script)
}

pub(crate) fn heal_way(lab: &LabState, node: &str) -> Result<()> {
    nft(lab, &format!("delete table netdev cut-{}", port(node)))
}

fn nft(lab: &LabState, script: &str) -> Result<()> {
    let output = command_in(&lab.bridge_namespace(), "nft")?.arg(script).output()?;
    ensure!(output.status.success(), "nft {script}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Name of the bridge's end of a namespace's cable: `p-` and what follows the lab's name.
fn port(namespace: &str) -> String {
    format!("p-{}", namespace.rsplit('-').next().unwrap_or(namespace))
}

/// Both families, where the kernel has both; or IPv6 alone.
fn plug(bridge_namespace: &str, namespace: &str, address: Ipv4Addr, has_ipv4: bool) -> Result<()> {
    add_namespace(namespace)?;
    if link_exists(namespace, "eth0")? {
        return Ok(());
    }
    let port = port(namespace);
    ip(
        bridge_namespace,
        &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", namespace],
    )?;
    ip(bridge_namespace, &["link", "set", &port, "master", BRIDGE, "up"])?;
    if has_ipv4 {
        ip(namespace, &["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    }
    if has_ipv6() {
        // Nobody else has it, and a daemon tells others of it only once that is sure.
        ip(namespace, &["addr", "add", &format!("{}/64", address6(address)), "dev", "eth0", "nodad"])?;
    }
    ip(namespace, &["link", "set", "eth0", "up"])
}

/// A veth pair carries what XDP sends only if its other end polls (GRO) and computes no checksums late. Real network
/// cards need none of this.
fn prepare_for_xdp(bridge_namespace: &str, port: &str) -> Result<()> {
    let output =
        command_in(bridge_namespace, "ethtool")?.args(["-K", port, "gro", "on", "tx", "off"]).output()?;
    ensure!(output.status.success(), "ethtool {port}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Whether this kernel has IPv6: a lab's machines have addresses of both families then.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

fn add_namespace(name: &str) -> Result<()> {
    if !namespace_exists(name) {
        run("ip", &["netns", "add", name])?;
        ip(name, &["link", "set", "lo", "up"])?;
    }
    Ok(())
}

fn namespace_exists(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

fn link_exists(namespace: &str, link: &str) -> Result<bool> {
    Ok(try_run("ip", &["-netns", namespace, "link", "show", link])?.success())
}

fn ip(namespace: &str, args: &[&str]) -> Result<()> {
    let all: Vec<&str> = ["-netns", namespace].iter().chain(args).copied().collect();
    run("ip", &all).map(drop)
}
