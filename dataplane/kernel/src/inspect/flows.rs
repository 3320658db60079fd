//! Flows: what the node remembers of those that enter by it, and what it keeps of those to its own backends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use aya::Pod;
use dataplane_model::inspect::{CachedFlow, FlowsReport, KeptFlow};
use dataplane_model::kernel_state::protocol_name;
use ebpf_abi::flow::{FLOW_ANSWERED, FLOW_AS_IPV4, FLOW_ESTABLISHED};
use ebpf_abi::{FlowTuple, ForwardFlow, ForwardKey, Ip, Ip4, Port, ReplyFlow, ReplyKey, StandIn};

use super::{InspectError, open};
use crate::bpf::{GateCounts, Table, TableError, Tables};

/// At most `limit` rows of either kind, those with the smallest keys, and how many more there are. Costs one pass over the
/// tables, and memory for `limit` rows.
pub fn flows(pin_dir: &Path, limit: usize) -> Result<FlowsReport, InspectError> {
    let tables = open(pin_dir)?;
    let now = tables.tick.get()?;
    let (cached, n_cached_left_off) = first(&tables.flow_cache, limit)?;
    let (forward, n_kept_left_off) = first(&tables.flows, limit)?;
    let gate = tables.gate.counts()?;
    let stand_ins = stand_ins(&tables, forward.values())?;
    let kept = forward.iter().map(|(key, flow)| kept_flow((&tables, &stand_ins), key, flow, now));
    Ok(FlowsReport {
        cached: cached.iter().map(|(key, backend)| cached_flow(key, backend.backend)).collect(),
        n_cached_left_off,
        kept: kept.collect::<Result<_, _>>()?,
        n_kept_left_off,
        n_unremembered: gate.n_unremembered,
        n_displaced: gate.n_displaced,
    })
}

/// How many flows the two tables hold, and were kept out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowCounts {
    pub n_cached: u64,
    /// Of this node's backends.
    pub n_kept: u64,
    pub gate: GateCounts,
}

/// Costs a pass over the tables.
pub fn count_flows(pin_dir: &Path) -> Result<FlowCounts, InspectError> {
    let tables = open(pin_dir)?;
    let (n_cached, n_kept) = (count(&tables.flow_cache)?, count(&tables.flows)?);
    Ok(FlowCounts { n_cached, n_kept, gate: tables.gate.counts()? })
}

fn count<K: Pod + Ord, V: Pod>(table: &Table<K, V>) -> Result<u64, TableError> {
    let mut n_rows = 0;
    table.visit(|_, _| {
        n_rows += 1;
        Ok(())
    })?;
    Ok(n_rows)
}

/// The `limit` rows with the smallest keys, and the number of the others. Rows that the programs write meanwhile may be
/// missing.
fn first<K: Pod + Ord, V: Pod>(
    table: &Table<K, V>,
    limit: usize,
) -> Result<(BTreeMap<K, V>, u64), TableError> {
    let (mut rows, mut n_left_off) = (BTreeMap::new(), 0);
    table.visit(|key, value| {
        rows.insert(key, value);
        if rows.len() > limit {
            rows.pop_last();
            n_left_off += 1;
        }
        Ok(())
    })?;
    Ok((rows, n_left_off))
}

/// The IPv4 addresses that stand for clients, if any of these flows needs one.
fn stand_ins<'a>(
    tables: &Tables,
    mut flows: impl Iterator<Item = &'a ForwardFlow>,
) -> Result<BTreeMap<Ip, Ip4>, TableError> {
    let mut addresses = BTreeMap::new();
    if flows.any(|flow| flow.family == FLOW_AS_IPV4) {
        tables.stand_ins.visit(|address: Ip4, row: StandIn| {
            addresses.insert(row.client, address);
            Ok(())
        })?;
    }
    Ok(addresses)
}

fn cached_flow(key: &FlowTuple, backend: Ip4) -> CachedFlow {
    CachedFlow {
        protocol: protocol_name(key.protocol),
        client: socket(key.source, key.source_port),
        service: socket(key.destination, key.destination_port),
        backend: backend.into(),
    }
}

fn kept_flow(
    (tables, stand_ins): (&Tables, &BTreeMap<Ip, Ip4>),
    key: &ForwardKey,
    flow: &ForwardFlow,
    now: u32,
) -> Result<KeptFlow, TableError> {
    let client_seen = (key.client, flow.client_port);
    let reply_key = ReplyKey::new((key.endpoint, flow.target_port), client_seen, key.protocol);
    // Another flow's row under the same key says nothing of this one.
    let reply = tables.replies.get(&reply_key)?.filter(|reply| reply_key.forward_key(reply) == *key);
    let last_seen = reply.map_or(flow.last_seen, |reply| reply.last_seen.max(flow.last_seen));
    Ok(KeptFlow {
        protocol: protocol_name(key.protocol),
        client: socket(key.client, key.client_port),
        service: socket(key.service, key.service_port),
        backend: socket(key.endpoint, flow.target_port),
        client_port_seen: flow.client_port.get(),
        client_address_seen: stand_ins
            .get(&key.client)
            .filter(|_| flow.family == FLOW_AS_IPV4)
            .map(|address| (*address).into()),
        state: state(flow, reply.as_ref()).to_owned(),
        idle_secs: now.saturating_sub(last_seen),
    })
}

fn state(forward: &ForwardFlow, reply: Option<&ReplyFlow>) -> &'static str {
    let is_established = forward.state & FLOW_ESTABLISHED != 0;
    match reply {
        Some(reply) if reply.is_closed() => "closed",
        Some(reply) if reply.closing != 0 => "closing",
        _ if is_established => "established",
        Some(reply) if reply.answered & FLOW_ANSWERED != 0 => "answered",
        _ => "new",
    }
}

fn socket(address: impl Into<Ip>, port: Port) -> SocketAddr {
    SocketAddr::new(address.into().into(), port.get())
}

#[cfg(test)]
mod tests {
    use ebpf_abi::flow::{FLOW_FIN_CLIENT, FLOW_RESET};

    use super::*;

    #[test]
    fn the_state_is_the_furthest_that_was_seen() {
        let forward = |state| {
            let mut flow = ForwardFlow::new(Port::new(80), Port::new(40_000), 0);
            flow.state = state;
            flow
        };
        let reply = |closing, answered| {
            let mut flow = ReplyFlow::new((Ip4([198, 18, 0, 11]), Port::new(8080)), Port::new(40_000), 0);
            (flow.closing, flow.answered) = (closing, answered);
            flow
        };
        let (fresh, established) = (forward(0), forward(FLOW_ESTABLISHED));
        assert_eq!(state(&fresh, None), "new");
        assert_eq!(state(&fresh, Some(&reply(0, 0))), "new");
        assert_eq!(state(&fresh, Some(&reply(0, FLOW_ANSWERED))), "answered");
        assert_eq!(state(&established, Some(&reply(0, FLOW_ANSWERED))), "established");
        assert_eq!(state(&established, Some(&reply(FLOW_FIN_CLIENT, FLOW_ANSWERED))), "closing");
        assert_eq!(state(&established, Some(&reply(FLOW_RESET, FLOW_ANSWERED))), "closed");
    }
}
