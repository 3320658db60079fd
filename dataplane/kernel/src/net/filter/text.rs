//! The table's text, and back. Every rule that carries data says it in its comment too, but for those of the set, and the
//! table's comment is the fingerprint of the whole: a restarted meshd reads comments and set, renders them again, and
//! believes them if the fingerprint is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use dataplane_model::ProtocolNumber;
use dataplane_model::kernel_state::{LinkName, PacketFilter};

pub(super) const NAME: &str = "meshd";
/// In place of the address of a node without one.
const NOBODY: &str = "none";
const FINGERPRINT: &str = "meshd rules ";
/// The set of what tasks reach of the routing mesh's endpoints.
const TARGETS: &str = "targets";

/// A transaction that replaces the table.
pub(super) fn render(filter: &PacketFilter) -> String {
    let body = body(filter);
    let fingerprint = format!("{FINGERPRINT}{:016x}", hash(&body));
    format!("{}table inet {NAME} {{\n\tcomment \"{fingerprint}\"\n{body}}}\n", removal())
}

/// A transaction that removes the table, there or not.
pub(super) fn removal() -> String {
    format!("table inet {NAME} {{}}\ndelete table inet {NAME}\n")
}

/// The filter that `nft list` shows; `None` if the rules are not what their fingerprint says.
pub(super) fn parse(listed: &str) -> Option<PacketFilter> {
    let comments: Vec<&str> = listed.lines().filter_map(comment).collect();
    let (mut filter, mut subnet6, mut tunnel) = (None, None, None);
    let (mut guarded, mut guarded6) = (BTreeSet::new(), BTreeSet::new());
    let (mut no_egress, mut host_ports) = (BTreeSet::new(), BTreeMap::new());
    for comment in &comments {
        let (word, data) = comment.split_once(' ')?;
        match word {
            "bridge" => {
                let (bridge, subnet) = data.split_once(' ')?;
                filter = Some((LinkName::new(bridge)?, subnet.parse().ok()?));
            }
            "subnet6" => subnet6 = Some(data.parse().ok()?),
            "tunnel" => {
                let (node, port) = data.split_once(':')?;
                let node = if node == NOBODY { None } else { Some(node.parse().ok()?) };
                tunnel = Some((node, port.parse().ok()?));
            }
            "guarded" => drop(guarded.insert(LinkName::new(data)?)),
            "guarded6" => drop(guarded6.insert(LinkName::new(data)?)),
            "no-egress" => drop(no_egress.insert(data.parse().ok()?)),
            "host-port" => {
                let (key, target) = data.split_once(' ')?;
                let (protocol, published) = key.split_once('/')?;
                let (address, port) = target.split_once(':')?;
                let key = (protocol.parse().ok()?, published.parse().ok()?);
                host_ports.insert(key, (address.parse().ok()?, port.parse().ok()?));
            }
            _ => {}
        }
    }
    let ((bridge, subnet), (node, tunnel_port)) = filter.zip(tunnel)?;
    let filter = PacketFilter {
        bridge,
        subnet,
        subnet6,
        tunnel_port,
        node,
        guarded,
        guarded6,
        no_egress,
        host_ports,
        targets: Arc::new(targets(listed)?),
    };
    let fingerprint = format!("{FINGERPRINT}{:016x}", hash(&body(&filter)));
    comments.contains(&fingerprint.as_str()).then_some(filter)
}

/// The set of target ports; `None` if it is not as it is written here.
fn targets(listed: &str) -> Option<BTreeSet<(ProtocolNumber, u16)>> {
    let Some((_, set)) = listed.split_once(&format!("set {TARGETS} {{")) else {
        return Some(BTreeSet::new());
    };
    let (_, elements) = set.split_once("elements = {")?;
    let (elements, _) = elements.split_once('}')?;
    let target = |element: &str| {
        let (protocol, port) = element.split_once('.')?;
        Some((protocol.trim().parse().ok()?, port.trim().parse().ok()?))
    };
    elements.split(',').map(target).collect()
}

fn comment(line: &str) -> Option<&str> {
    line.split_once("comment \"")?.1.split_once('"').map(|(comment, _)| comment)
}

fn body(filter: &PacketFilter) -> String {
    let mut text = String::new();
    target_set(filter, &mut text)
        .and_then(|()| untracked_chains(filter, &mut text))
        .and_then(|()| no_route_chain(filter, &mut text))
        .and_then(|()| forward_chain(filter, &mut text))
        .and_then(|()| nat_chains(filter, &mut text))
        .expect("a String takes all");
    text
}

/// Comments have room for 128 bytes, a set for all elements.
fn target_set(filter: &PacketFilter, text: &mut String) -> std::fmt::Result {
    let targets: Vec<String> =
        filter.targets.iter().map(|(protocol, port)| format!("{protocol} . {port}")).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let elements = targets.join(", ");
    writeln!(
        text,
        "\tset {TARGETS} {{\n\t\ttype inet_proto . inet_service\n\t\telements = {{ {elements} }}\n\t}}"
    )
}

/// The routing mesh's endpoints are reached by the ports that are published, by which the node's own processes and those of
/// tasks that are not in its network get there; by all others they are as closed as they are from outside.
fn target_rules(filter: &PacketFilter, text: &mut String) -> std::fmt::Result {
    let to_mesh = format!("iifname \"{}\" oifname \"{}\"", filter.bridge, LinkName::VXLAN);
    if !filter.targets.is_empty() {
        writeln!(text, "\t\t{to_mesh} meta l4proto . th dport @{TARGETS} accept")?;
    }
    writeln!(text, "\t\t{to_mesh} meta l4proto tcp reject with tcp reset")?;
    writeln!(text, "\t\t{to_mesh} reject")
}

/// Before connection tracking (priority -200) sees them. What is for a loopback address then is no answer, whose address the
/// tracking restores, and nobody behind the bridge may ask there.
fn untracked_chains(filter: &PacketFilter, text: &mut String) -> std::fmt::Result {
    let (port, bridge) = (filter.tunnel_port, &filter.bridge);
    let node = filter.node.map_or_else(|| NOBODY.to_owned(), |node| node.to_string());
    writeln!(text, "\tchain raw_in {{\n\t\ttype filter hook prerouting priority -300; policy accept;")?;
    writeln!(text, "\t\tiifname \"{bridge}\" ip daddr 127.0.0.0/8 drop")?;
    writeln!(text, "\t\tudp dport {port} notrack comment \"tunnel {node}:{port}\"\n\t}}")?;
    writeln!(text, "\tchain raw_out {{\n\t\ttype filter hook output priority -300; policy accept;")?;
    writeln!(text, "\t\tudp dport {port} notrack\n\t}}")
}

/// Where the node has no route, connections by IPv6 are reset: the kernel's own "no route" is one of few in a second (RFC 4443
/// section 2.4 (f)), and who asks has addresses of IPv4 to go on to.
fn no_route_chain(filter: &PacketFilter, text: &mut String) -> std::fmt::Result {
    let PacketFilter { bridge, subnet6: Some(_), .. } = filter else { return Ok(()) };
    writeln!(text, "\tchain no_route {{\n\t\ttype filter hook prerouting priority -90; policy accept;")?;
    let asked = format!("iifname \"{bridge}\" meta nfproto ipv6 meta l4proto tcp fib daddr type unreachable");
    writeln!(text, "\t\t{asked} reject with tcp reset\n\t}}")
}

/// Nothing with a source that is nobody's behind the bridge, nor for the tunnels' port.
fn source_rules(filter: &PacketFilter, text: &mut String) -> std::fmt::Result {
    let PacketFilter { bridge, subnet, subnet6, tunnel_port, .. } = filter;
    writeln!(text, "\t\tiifname \"{bridge}\" udp dport {tunnel_port} drop")?;
    writeln!(text, "\t\tiifname \"{bridge}\" ip saddr != {subnet} drop")?;
    match subnet6 {
        Some(subnet6) => writeln!(text, "\t\tiifname \"{bridge}\" ip6 saddr != {subnet6} drop"),
        None => writeln!(text, "\t\tiifname \"{bridge}\" meta nfproto ipv6 drop"),
    }
}

/// Tasks may begin connections to the outside, nobody may begin one to them but through their host ports; and where the
/// host does not forward by itself, what an uplink forwards goes to the bridge alone. First of all, a task can't pass for
/// another node: nothing for the tunnels' port and nothing with a foreign source leaves the bridge.
fn forward_chain(filter: &PacketFilter, text: &mut String) -> std::fmt::Result {
    let PacketFilter { bridge, subnet, .. } = filter;
    writeln!(text, "\tchain forward {{\n\t\ttype filter hook forward priority 0; policy accept;")?;
    source_rules(filter, text)?;
    writeln!(text, "\t\tct state established,related accept")?;
    for address in &filter.no_egress {
        writeln!(text, "\t\tiifname \"{bridge}\" ip saddr {address} drop comment \"no-egress {address}\"")?;
        if let Some(address6) = filter.address6(*address) {
            writeln!(text, "\t\tiifname \"{bridge}\" ip6 saddr {address6} drop")?;
        }
    }
    target_rules(filter, text)?;
    writeln!(text, "\t\tct status dnat accept")?;
    writeln!(text, "\t\toifname \"{bridge}\" drop comment \"bridge {bridge} {subnet}\"")?;
    for (family, word, uplinks) in
        [("ipv4", "guarded", &filter.guarded), ("ipv6", "guarded6", &filter.guarded6)]
    {
        for uplink in uplinks {
            let guarded = format!("iifname \"{uplink}\" meta nfproto {family}");
            writeln!(text, "\t\t{guarded} drop comment \"{word} {uplink}\"")?;
        }
    }
    writeln!(text, "\t}}\n\tchain input {{\n\t\ttype filter hook input priority 0; policy accept;")?;
    source_rules(filter, text)?;
    for address in &filter.no_egress {
        writeln!(text, "\t\tiifname \"{bridge}\" ip saddr {address} ct state new drop")?;
        if let Some(address6) = filter.address6(*address) {
            writeln!(text, "\t\tiifname \"{bridge}\" ip6 saddr {address6} ct state new drop")?;
        }
    }
    // Tunnels bring the node's processes answers; a task that may go out does so by the bridge.
    writeln!(text, "\t\tiifname \"{}\" ct state new reject", LinkName::VXLAN)?;
    writeln!(text, "\t}}")
}

/// `dnat` rules of all host ports, by both families. Of IPv6 not for link-local addresses, whose clients no router answers.
fn host_port_rules(filter: &PacketFilter, is_output: bool, text: &mut String) -> std::fmt::Result {
    // Not the loopback address of IPv6: an answer to it is a martian outside of the loopback interface, whatever it is told.
    let outer6 = if is_output { "ip6 daddr != ::1 ip6 daddr != fe80::/10" } else { "ip6 daddr != fe80::/10" };
    for ((protocol, published), (address, target)) in &filter.host_ports {
        let asked = format!("fib daddr type local meta l4proto {protocol} th dport {published}");
        let comment = format!("host-port {protocol}/{published} {address}:{target}");
        let comment = if is_output { String::new() } else { format!(" comment \"{comment}\"") };
        writeln!(text, "\t\t{asked} dnat ip to {address}:{target}{comment}")?;
        if let Some(address6) = filter.address6(*address) {
            writeln!(text, "\t\t{outer6} {asked} dnat ip6 to [{address6}]:{target}")?;
        }
    }
    Ok(())
}

/// The last rules masquerade too what a task sends to another one's host port, and a process from a loopback address: the answer
/// must come back through here.
fn nat_chains(filter: &PacketFilter, text: &mut String) -> std::fmt::Result {
    writeln!(text, "\tchain prerouting {{\n\t\ttype nat hook prerouting priority -100; policy accept;")?;
    host_port_rules(filter, false, text)?;
    writeln!(text, "\t}}\n\tchain output {{\n\t\ttype nat hook output priority -100; policy accept;")?;
    host_port_rules(filter, true, text)?;
    writeln!(
        text,
        "\t}}\n\tchain postrouting {{\n\t\ttype nat hook postrouting priority 100; policy accept;"
    )?;
    let PacketFilter { subnet, bridge, .. } = filter;
    writeln!(text, "\t\tip saddr 127.0.0.0/8 oifname \"{bridge}\" masquerade")?;
    if let Some(node) = filter.node {
        writeln!(text, "\t\tip saddr {subnet} oifname \"{}\" snat ip to {node}", LinkName::VXLAN)?;
    }
    if let Some(subnet6) = filter.subnet6 {
        writeln!(text, "\t\tip6 saddr {subnet6} masquerade comment \"subnet6 {subnet6}\"")?;
    }
    writeln!(text, "\t\tip saddr {subnet} masquerade\n\t}}")
}

/// FNV-1a: the same in every version of meshd.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
