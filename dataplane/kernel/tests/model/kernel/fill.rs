//! The machine's tables as the model's: written from it, and read back.

use std::collections::BTreeMap;

use aya::Pod;
use dataplane_kernel::bpf::{Replaced, Table};
use ebpf_abi::names::map;
use ebpf_abi::{
    FlowTuple, ForwardKey, FragmentKey, GateRow, Ip, Ip4, ReplyKey, RingKey, SocketNatKey, VipFlowKey,
};

use super::Machine;
use crate::packet::Change;
use crate::tables::{Gate, Wanted, Written};

impl Machine {
    /// Makes the tables those of a new run: `before` are the rows that they have.
    pub fn fill(&mut self, before: &Wanted, after: &Wanted) {
        let tables = &mut self.tables;
        tables.config.set(&after.config).unwrap();
        tables.tick.set(&after.tick).unwrap();
        tables.vips_asked.set(&0).unwrap();
        let shares = tables.vip_shares.rows().unwrap();
        replace(&mut tables.vip_shares, &shares, &BTreeMap::new());
        replace(&mut tables.frontends, &before.frontends, &after.frontends);
        replace(&mut tables.endpoints, &before.endpoints, &after.endpoints);
        replace(&mut tables.target_ports, &before.target_ports, &after.target_ports);
        replace(&mut tables.address_owners, &before.address_owners, &after.address_owners);
        replace(&mut tables.prefixes6, &before.prefixes6, &after.prefixes6);
        replace(&mut tables.attachments, &before.attachments, &after.attachments);
        replace(&mut tables.vips, &before.vips, &after.vips);
        replace(&mut tables.sandboxes, &before.sandboxes, &after.sandboxes);
        replace(&mut tables.peers, &before.peers, &after.peers);
        self.fill_rings(before, after);
        self.clear::<Ip>(map::NEXT_HOPS);
        self.clear::<FlowTuple>(map::FLOW_CACHE);
        self.clear::<FragmentKey>(map::FRAGMENTS);
        self.clear::<ForwardKey>(map::FLOWS);
        self.clear::<ReplyKey>(map::REPLIES);
        self.clear::<Ip4>(map::STAND_INS);
        self.clear::<SocketNatKey>(map::SOCKET_NAT);
        self.clear::<VipFlowKey>(map::VIP_FLOWS);
        self.drain::<ForwardKey>(map::HALF_OPEN);
        *self.gate() = GateRow::default();
    }

    /// The oldest rings first, each age in one call.
    fn fill_rings(&mut self, before: &Wanted, after: &Wanted) {
        let rings = &mut self.tables.rings;
        let old: Vec<RingKey> = before.rings.keys().copied().collect();
        if !old.is_empty() {
            rings.remove_all(&old).unwrap();
        }
        let oldest = after.rings.values().map(Vec::len).max().unwrap_or(0);
        for age in (0..oldest).rev() {
            let of_age: Vec<(RingKey, Vec<Ip4>)> = after
                .rings
                .iter()
                .filter_map(|(key, history)| Some((*key, history.get(age)?.clone())))
                .collect();
            rings.swap_all(&of_age, |_| Replaced::Stay).unwrap();
        }
    }

    pub fn apply(&mut self, change: &Change) {
        let tables = &mut self.tables;
        match change {
            Change::Config(config) => tables.config.set(config).unwrap(),
            Change::Tick(tick) => tables.tick.set(tick).unwrap(),
            Change::Ring(key, places) => tables.rings.swap(key, places).unwrap(),
            Change::Endpoint(key, row) => put(&mut tables.endpoints, key, row.as_ref()),
            Change::TargetPort(key, row) => put(&mut tables.target_ports, key, row.as_ref()),
            Change::AddressOwner(address, row) => put(&mut tables.address_owners, address, row.as_ref()),
            Change::Frontend(key, row) => tables.frontends.insert(key, row).unwrap(),
            Change::Prefix6(vni, row) => put(&mut tables.prefixes6, vni, row.as_ref()),
            Change::EmptyCaches => {
                self.clear::<Ip>(map::NEXT_HOPS);
                self.clear::<FlowTuple>(map::FLOW_CACHE);
                self.clear::<FragmentKey>(map::FRAGMENTS);
            }
            Change::ForgetFlow(forward, reply) => {
                if let Some(key) = forward {
                    self.remove(map::FLOWS, key);
                }
                if let Some(key) = reply {
                    self.remove(map::REPLIES, key);
                }
            }
            Change::EmptyFlows => {
                self.clear::<ForwardKey>(map::FLOWS);
                self.clear::<ReplyKey>(map::REPLIES);
                self.clear::<VipFlowKey>(map::VIP_FLOWS);
                self.tables.vips_asked.set(&0).unwrap();
            }
            Change::VipShare(task, n_rows) => tables.vip_shares.insert(task, n_rows).unwrap(),
            Change::ForgetVipFlow(key) => self.remove(map::VIP_FLOWS, key),
        }
    }

    /// What the programs have written. The line of half-open flows is empty then.
    pub fn take_written(&mut self) -> Written {
        let gate = *self.gate();
        Written {
            next_hops: self.rows(map::NEXT_HOPS),
            flow_cache: self.rows(map::FLOW_CACHE),
            fragments: self.rows(map::FRAGMENTS),
            flows: self.rows(map::FLOWS),
            replies: self.rows(map::REPLIES),
            stand_ins: self.rows(map::STAND_INS),
            socket_nat: self.rows(map::SOCKET_NAT),
            vip_flows: self.rows(map::VIP_FLOWS),
            vips_asked: self.tables.vips_asked.get().unwrap(),
            vip_shares: self.tables.vip_shares.rows().unwrap(),
            half_open: self.drain(map::HALF_OPEN).into(),
            gate: Gate {
                tick: gate.tick,
                n_new: gate.n_new,
                n_unremembered: gate.n_unremembered,
                n_displaced: gate.n_displaced,
            },
        }
    }
}

fn put<K: Pod + Ord, V: Pod>(table: &mut Table<K, V>, key: &K, row: Option<&V>) {
    match row {
        Some(row) => table.insert(key, row).unwrap(),
        None => table.remove(key).unwrap(),
    }
}

fn replace<K: Pod + Ord, V: Pod + PartialEq>(
    table: &mut Table<K, V>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) {
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        table.remove(key).unwrap();
    }
    for (key, row) in after.iter().filter(|(key, row)| before.get(key) != Some(row)) {
        table.insert(key, row).unwrap();
    }
}
