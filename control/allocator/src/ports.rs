//! Published ports of the routing mesh: cluster-wide, one service each.

use std::collections::{BTreeMap, BTreeSet};

use control_model::ServiceId;
use control_model::spec::{PortConfig, Protocol, PublishMode};

/// First and last port that is handed out where a user asks for none (swarmkit `portallocator.go`).
const DYNAMIC_FIRST: u16 = 30000;
const DYNAMIC_LAST: u16 = 32767;

/// Which service holds which port.
#[derive(Debug, Clone, Default)]
pub(crate) struct PortTable {
    held: BTreeMap<(Protocol, u16), ServiceId>,
    /// What the nodes themselves need: not handed out.
    own: BTreeSet<(Protocol, u16)>,
    /// Where the search begins, so that a freed port is not handed out again at once.
    next: BTreeMap<Protocol, u16>,
}

impl PortTable {
    /// Notes a port that the service has; `false` if another has it.
    pub(crate) fn hold(&mut self, protocol: Protocol, port: u16, service: ServiceId) -> bool {
        *self.held.entry((protocol, port)).or_insert(service) == service
    }

    pub(crate) fn free(&mut self, protocol: Protocol, port: u16, service: ServiceId) {
        if self.held.get(&(protocol, port)) == Some(&service) {
            self.held.remove(&(protocol, port));
        }
    }

    /// Tells what the nodes need, from now on.
    pub(crate) fn set_own(&mut self, own: BTreeSet<(Protocol, u16)>) {
        self.own = own;
    }

    /// Fills in the `published` of ingress ports, keeping what `old` has for the same target. Takes nothing
    /// unless all can be taken; `Err` is the port that can't.
    pub(crate) fn allocate(
        &mut self,
        service: ServiceId,
        wanted: &[PortConfig],
        old: &[PortConfig],
    ) -> Result<Vec<PortConfig>, PortConfig> {
        let mut taken = Vec::new();
        let filled = self.try_allocate(service, wanted, old, &mut taken);
        if filled.is_err() {
            for (protocol, port) in taken {
                self.free(protocol, port, service);
            }
        }
        filled
    }

    fn try_allocate(
        &mut self,
        service: ServiceId,
        wanted: &[PortConfig],
        old: &[PortConfig],
        taken: &mut Vec<(Protocol, u16)>,
    ) -> Result<Vec<PortConfig>, PortConfig> {
        for port in wanted.iter().filter(|port| is_mesh_port(port) && port.published != 0) {
            if !self.take(port.protocol, port.published, service, taken) {
                return Err(port.clone());
            }
        }
        let mut filled: Vec<PortConfig> = Vec::with_capacity(wanted.len());
        for port in wanted {
            let published = match port.published {
                0 if is_mesh_port(port) => {
                    let others: Vec<&PortConfig> = wanted.iter().chain(&filled).collect();
                    let published = self.kept(service, port, old, &others);
                    let published =
                        published.or_else(|| self.next_free(port.protocol)).ok_or_else(|| port.clone())?;
                    self.take(port.protocol, published, service, taken);
                    published
                }
                given => given,
            };
            filled.push(PortConfig { published, ..port.clone() });
        }
        Ok(filled)
    }

    /// As [`Self::hold`], and notes in `taken` what was free before.
    fn take(
        &mut self,
        protocol: Protocol,
        port: u16,
        service: ServiceId,
        taken: &mut Vec<(Protocol, u16)>,
    ) -> bool {
        if !self.held.contains_key(&(protocol, port)) {
            taken.push((protocol, port));
        }
        self.hold(protocol, port, service)
    }

    /// The dynamic port that the service has for this target, unless one of `others` has it now.
    fn kept(
        &self,
        service: ServiceId,
        port: &PortConfig,
        old: &[PortConfig],
        others: &[&PortConfig],
    ) -> Option<u16> {
        let is_used = |published: u16| {
            others.iter().any(|other| {
                is_mesh_port(other) && other.protocol == port.protocol && other.published == published
            })
        };
        let same_target = old
            .iter()
            .filter(|old| is_mesh_port(old) && (old.protocol, old.target) == (port.protocol, port.target));
        same_target.map(|old| old.published).find(|published| {
            (DYNAMIC_FIRST..=DYNAMIC_LAST).contains(published)
                && self.held.get(&(port.protocol, *published)).is_none_or(|holder| *holder == service)
                && !self.own.contains(&(port.protocol, *published))
                && !is_used(*published)
        })
    }

    fn next_free(&mut self, protocol: Protocol) -> Option<u16> {
        let start = self.next.get(&protocol).copied().unwrap_or(DYNAMIC_FIRST);
        let port = (start..=DYNAMIC_LAST).chain(DYNAMIC_FIRST..start).find(|port| {
            let key = (protocol, *port);
            !self.held.contains_key(&key) && !self.own.contains(&key)
        })?;
        let next = if port == DYNAMIC_LAST { DYNAMIC_FIRST } else { port + 1 };
        self.next.insert(protocol, next);
        Some(port)
    }
}

/// Whether the port is published by the routing mesh.
pub(crate) fn is_mesh_port(port: &PortConfig) -> bool {
    port.mode == PublishMode::Ingress
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: ServiceId = ServiceId::from_bits(1);
    const API: ServiceId = ServiceId::from_bits(2);

    fn port(target: u16, published: u16) -> PortConfig {
        PortConfig::new(Protocol::Tcp, target, published, PublishMode::Ingress)
    }

    fn published(ports: &[PortConfig]) -> Vec<u16> {
        ports.iter().map(|port| port.published).collect()
    }

    #[test]
    fn the_nodes_own_ports_are_not_handed_out() {
        let mut table = PortTable::default();
        table.set_own([(Protocol::Tcp, 30000), (Protocol::Udp, 30001)].into());
        let first = table.allocate(WEB, &[port(80, 0), port(81, 0)], &[]).unwrap();
        assert_eq!(published(&first), [30001, 30002]);
        table.set_own([(Protocol::Tcp, 30001)].into());
        assert_eq!(published(&table.allocate(WEB, &[port(80, 0)], &first).unwrap()), [30003]);
    }

    #[test]
    fn dynamic_ports_start_at_30000_and_rest() {
        let mut table = PortTable::default();
        assert_eq!(
            published(&table.allocate(WEB, &[port(80, 0), port(81, 0)], &[]).unwrap()),
            [30000, 30001]
        );
        table.free(Protocol::Tcp, 30000, WEB);
        assert_eq!(published(&table.allocate(API, &[port(80, 0)], &[]).unwrap()), [30002]);
    }

    #[test]
    fn a_kept_target_keeps_its_port() {
        let mut table = PortTable::default();
        let old = table.allocate(WEB, &[port(80, 0)], &[]).unwrap();
        let new = table.allocate(WEB, &[port(443, 0), port(80, 0)], &old).unwrap();
        assert_eq!(published(&new), [30001, 30000]);
    }

    #[test]
    fn two_entries_of_one_target_get_two_ports() {
        let mut table = PortTable::default();
        let old = table.allocate(WEB, &[port(80, 0)], &[]).unwrap();
        let new = table.allocate(WEB, &[port(80, 0), port(80, 0)], &old).unwrap();
        assert_eq!(published(&new), [30000, 30001]);
    }

    #[test]
    fn a_taken_port_takes_nothing() {
        let mut table = PortTable::default();
        assert!(table.hold(Protocol::Tcp, 8080, WEB));
        let refused = table.allocate(API, &[port(1, 9090), port(2, 8080)], &[]);
        assert_eq!(refused, Err(port(2, 8080)));
        assert!(table.hold(Protocol::Tcp, 9090, WEB));
        // The same number of another protocol is another port.
        assert!(table.hold(Protocol::Udp, 8080, API));
    }

    #[test]
    fn the_range_can_be_used_up() {
        let mut table = PortTable::default();
        for published in DYNAMIC_FIRST..=DYNAMIC_LAST {
            assert!(table.hold(Protocol::Tcp, published, WEB));
        }
        assert_eq!(table.allocate(API, &[port(80, 0)], &[]), Err(port(80, 0)));
        table.free(Protocol::Tcp, 31000, WEB);
        assert_eq!(published(&table.allocate(API, &[port(80, 0)], &[]).unwrap()), [31000]);
    }
}
