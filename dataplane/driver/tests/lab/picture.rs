//! What a namespace's kernel holds, as text: equal texts, nothing was touched and nothing is left.

use super::{Ns, PATIENCE, namespace::shell};

const COMMANDS: &[&str] = &[
    "ip -o link",
    "ip -o addr",
    "ip rule",
    "ip -6 rule",
    "ip route show table all",
    "ip -6 route show table all",
    "nft list ruleset",
    "tc qdisc show",
    "cat /proc/sys/net/ipv4/conf/up0/forwarding",
    "cat /proc/sys/net/ipv6/conf/up0/accept_ra",
];

/// Taken when no address of the kernel's own is on its way any more.
pub fn picture(ns: &Ns) -> String {
    let is_calm = || !ns.shell("ip -o addr").contains("tentative");
    super::wait_until("addresses are there", is_calm, || format!("not in {PATIENCE:?}"));
    let told = |command: &&str| ["$ ", command, "\n", &shell(command)].concat();
    ns.run(move || COMMANDS.iter().map(told).collect::<Vec<String>>().concat())
}
