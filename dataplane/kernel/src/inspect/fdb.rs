//! Where the node sends what it has for others: peers, owners of addresses, endpoints.

use std::path::Path;

use dataplane_model::inspect::{FdbEndpoint, FdbReport, OwnerRow};
use ebpf_abi::{Endpoint, EndpointKey, Ip};

use super::{InspectError, name_of, open};

/// All of the three tables, in order.
pub fn fdb(pin_dir: &Path) -> Result<FdbReport, InspectError> {
    let tables = open(pin_dir)?;
    let owner = |(address, vtep): (Ip, Ip)| OwnerRow {
        address: address.into(),
        vtep: (!vtep.is_unspecified()).then(|| vtep.into()),
    };
    Ok(FdbReport {
        peers: tables.peers.rows()?.into_keys().map(Into::into).collect(),
        owners: tables.address_owners.rows()?.into_iter().map(owner).collect(),
        endpoints: tables.endpoints.rows()?.into_iter().map(|(key, row)| endpoint(key, &row)).collect(),
    })
}

fn endpoint(key: EndpointKey, row: &Endpoint) -> FdbEndpoint {
    let ifindex = row.is_local().then_some(row.ifindex);
    FdbEndpoint {
        vni: key.vni,
        address: key.address.into(),
        mac: row.mac.to_string(),
        vtep: (!row.is_local()).then(|| row.vtep.into()),
        ifindex,
        interface: ifindex.map(name_of),
        serves: row.serves(),
    }
}
