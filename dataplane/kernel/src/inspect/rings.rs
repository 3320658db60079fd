//! Load balancers: what leads to a ring, who has its places, and what the ring was before.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use dataplane_model::inspect::{
    LoadBalancerBackend, LoadBalancerRow, RingReport, RingRow, is_frontend_named,
};
use dataplane_model::kernel_state::protocol_name;
use ebpf_abi::{EndpointKey, Ip, Ip4, RingKey};

use super::{InspectError, open};
use crate::bpf::Tables;

/// What leads to a ring: a published port or a virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrance {
    /// As [`LoadBalancerRow::frontend`].
    pub frontend: String,
    /// As [`LoadBalancerRow::kind`].
    pub kind: &'static str,
    pub vni: u32,
}

/// Frontends and virtual addresses with their rings, in order.
pub fn load_balancers(pin_dir: &Path) -> Result<Vec<LoadBalancerRow>, InspectError> {
    let tables = open(pin_dir)?;
    let mut reader = RingReader::new(&tables)?;
    let mut rows = Vec::new();
    for (Entrance { frontend, kind, vni }, ring) in entrances(&tables)? {
        let (ring_size, backends) = reader.backends(ring)?.unwrap_or_default();
        let (kind, service) = (kind.to_owned(), String::new());
        rows.push(LoadBalancerRow { frontend, kind, vni, service, dsr: false, ring_size, backends });
    }
    Ok(rows)
}

/// The rings of the service with the name `of`, or that the frontend or virtual address of this name leads to; in order,
/// each with its earlier ones. Only these are read. `service` says whose an entrance is, where that is known.
pub fn rings(
    pin_dir: &Path,
    of: &str,
    service: impl Fn(&Entrance) -> Option<String>,
) -> Result<Vec<RingReport>, InspectError> {
    let tables = open(pin_dir)?;
    let reader = RingReader::new(&tables)?;
    let mut by_ring: BTreeMap<RingKey, Vec<Entrance>> = BTreeMap::new();
    for (entrance, ring) in entrances(&tables)? {
        by_ring.entry(ring).or_default().push(entrance);
    }
    let mut reports = Vec::new();
    for (ring, entrances) in by_ring {
        let service = entrances.first().and_then(&service).unwrap_or_default();
        let is_meant = |entrance: &Entrance| is_frontend_named(&entrance.frontend, of);
        if service == of || entrances.iter().any(is_meant) {
            let frontends = entrances.into_iter().map(|entrance| entrance.frontend).collect();
            let rings = reader.with_earlier(ring)?;
            reports.push(RingReport { service, vni: ring.vni, frontends, rings });
        }
    }
    Ok(reports)
}

/// How many rings are in use.
pub fn count_rings(pin_dir: &Path) -> Result<u64, InspectError> {
    let n_rings = open(pin_dir)?.rings.keys()?.len();
    Ok(u64::try_from(n_rings).unwrap_or(u64::MAX))
}

fn entrances(tables: &Tables) -> Result<Vec<(Entrance, RingKey)>, InspectError> {
    let mut found = Vec::new();
    for (key, frontend) in tables.frontends.rows()? {
        let at = SocketAddr::new(key.address.into(), key.port.get());
        let name = format!("{at}/{}", protocol_name(key.protocol));
        let entrance = Entrance { frontend: name, kind: "ingress", vni: frontend.ring.vni };
        found.push((entrance, frontend.ring));
    }
    for (key, ring) in tables.vips.rows()? {
        found.push((Entrance { frontend: key.address.to_string(), kind: "vip", vni: ring.vni }, ring));
    }
    Ok(found)
}

/// A ring's size, and who has how many of its places.
type Shares = (u32, Vec<LoadBalancerBackend>);

/// Reads every ring in use once: one service may have many frontends.
struct RingReader<'a> {
    tables: &'a Tables,
    own_vtep: Ip,
    read: BTreeMap<RingKey, Option<Shares>>,
}

impl<'a> RingReader<'a> {
    fn new(tables: &'a Tables) -> Result<Self, InspectError> {
        Ok(Self { tables, own_vtep: tables.config.get()?.vtep, read: BTreeMap::new() })
    }

    /// The ring in use and the earlier ones.
    fn with_earlier(&self, ring: RingKey) -> Result<Vec<RingRow>, InspectError> {
        let mut rows = Vec::new();
        for (age, places) in (0..).zip(self.tables.rings.all(&ring)?) {
            let (size, backends) = self.count(ring.vni, &places)?;
            rows.push(RingRow { age, size, backends });
        }
        Ok(rows)
    }

    /// Of the ring in use; `None` if there is no such ring.
    fn backends(&mut self, ring: RingKey) -> Result<Option<Shares>, InspectError> {
        if let Some(known) = self.read.get(&ring) {
            return Ok(known.clone());
        }
        let places = self.tables.rings.places(&ring)?;
        let found = places.map(|places| self.count(ring.vni, &places)).transpose()?;
        self.read.insert(ring, found.clone());
        Ok(found)
    }

    fn count(&self, vni: u32, places: &[Ip4]) -> Result<Shares, InspectError> {
        let mut counts: BTreeMap<Ip4, u32> = BTreeMap::new();
        for place in places {
            *counts.entry(*place).or_default() += 1;
        }
        let mut backends = Vec::new();
        for (address, places) in counts {
            let vtep = self.vtep(EndpointKey { vni, address })?;
            backends.push(LoadBalancerBackend { address: address.into(), vtep, places });
        }
        Ok((u32::try_from(places.len()).unwrap_or(u32::MAX), backends))
    }

    /// Tunnel end of an endpoint's node; 0.0.0.0 if the endpoint is gone.
    fn vtep(&self, key: EndpointKey) -> Result<IpAddr, InspectError> {
        let vtep = self.tables.endpoints.get(&key)?.map_or(Ip::v4(Ip4::UNSPECIFIED), |endpoint| {
            if endpoint.is_local() { self.own_vtep } else { endpoint.vtep }
        });
        Ok(vtep.into())
    }
}
