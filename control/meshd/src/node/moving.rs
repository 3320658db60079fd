//! A node whose address changes goes on under the new one by itself: its certificate says who it is, not where.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use control_api::node::SwarmError;

use super::{MeshNode, Standing, failed};
use crate::addresses::{Addresses, SystemAddresses};
use crate::disk::{KnownManager, NodeFile};

/// Between two looks. Two in a row must see the same: an interface that flaps has not moved.
const LOOK: Duration = Duration::from_secs(2);

/// Looks until the node is gone.
pub async fn watch(node: Weak<MeshNode>) {
    let mut seen = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        let now = node.moved();
        if now.is_some() && now == seen {
            seen = None;
            if let Err(error) = node.go_on_elsewhere().await {
                tracing::error!(%error, "the node has moved, and can't go on there");
            }
        } else {
            seen = now;
        }
    }
}

impl MeshNode {
    /// What the node is to tell of itself now, if it has moved.
    fn moved(&self) -> Option<NodeFile> {
        let file = self.swarm()?.file();
        let own = self.host.addresses.read();
        // As the settings of the daemon say, or its one address: where several would do, nobody knows which.
        let chosen = self.addresses("", "", "").ok()?;
        moved(&own, &file, chosen)
    }

    /// Begins the membership anew where the node is now. Tasks go on.
    async fn go_on_elsewhere(self: Arc<Self>) -> Result<(), SwarmError> {
        let _changing = self.changing.lock().await;
        let (Some(file), Standing::In(swarm)) = (self.moved(), self.standing()) else { return Ok(()) };
        tracing::warn!(before = %swarm.file().advertise, now = %file.advertise, "this node has moved");
        swarm.shut_down().await;
        let (data_plane, opened) = (swarm.data_plane().clone(), swarm.opened());
        drop(swarm);
        let started = self.dir.store(&file).map_err(failed);
        let started = started.and_then(|()| self.start_on(data_plane, opened, file));
        let (standing, outcome) = match started {
            Ok(swarm) => (Standing::In(swarm), Ok(())),
            Err(error) => (Standing::Broken(error.to_string()), Err(error)),
        };
        self.stand(standing);
        outcome
    }
}

/// `file` with the address that the node has instead of the advertised one, which is not there any more. An address that
/// never was the node's own (of a load balancer) can't go.
fn moved(own: &SystemAddresses, file: &NodeFile, chosen: Addresses) -> Option<NodeFile> {
    let has = |ip: IpAddr| own.all().any(|own| own == ip);
    let (former, now) = (file.advertise.ip(), chosen.advertise.ip());
    if !file.advertise_is_own || has(former) || !has(now) || former.is_ipv4() != now.is_ipv4() {
        return None;
    }
    let moved = |addr: SocketAddr| if addr.ip() == former { SocketAddr::new(now, addr.port()) } else { addr };
    let managers = file.managers.iter();
    Some(NodeFile {
        listen: moved(file.listen),
        advertise: moved(file.advertise),
        data_path: if has(file.data_path) { file.data_path } else { now },
        managers: managers.map(|known| KnownManager { addr: moved(known.addr), ..known.clone() }).collect(),
        ..file.clone()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use control_model::{ClusterId, NodeId};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn own(addresses: &[&str]) -> SystemAddresses {
        SystemAddresses(BTreeMap::from([(
            "eth0".to_owned(),
            addresses.iter().map(|text| ip(text)).collect(),
        )]))
    }

    fn file(listen: &str, data_path: &str) -> NodeFile {
        NodeFile {
            node: NodeId::from_bits(1),
            cluster: ClusterId::from_bits(2),
            listen: addr(listen),
            advertise: addr("198.18.0.11:2377"),
            advertise_is_own: true,
            data_path: ip(data_path),
            data_path_port: 4789,
            raft_id: Some(3),
            managers: vec![
                KnownManager { node: NodeId::from_bits(1), addr: addr("198.18.0.11:2377") },
                KnownManager { node: NodeId::from_bits(2), addr: addr("198.18.0.12:2377") },
            ],
        }
    }

    fn at(text: &str) -> Addresses {
        Addresses {
            listen: addr("0.0.0.0:2377"),
            advertise: SocketAddr::new(ip(text), 2377),
            data_path: ip(text),
        }
    }

    #[test]
    fn what_was_the_former_address_becomes_the_new_one() {
        let before = file("198.18.0.11:2377", "198.18.0.11");
        let now = moved(&own(&["198.18.0.51"]), &before, at("198.18.0.51")).expect("it has moved");
        let new = addr("198.18.0.51:2377");
        assert_eq!((now.listen, now.advertise, now.data_path), (new, new, new.ip()));
        assert_eq!(now.managers[0].addr, new);
        assert_eq!(now.managers[1].addr, addr("198.18.0.12:2377"));
        assert_eq!((now.node, now.raft_id), (before.node, before.raft_id));

        // All addresses are listened on, and tunnels end on another interface, which is still there.
        let before = file("0.0.0.0:2377", "10.9.0.1");
        let now =
            moved(&own(&["198.18.0.51", "10.9.0.1"]), &before, at("198.18.0.51")).expect("it has moved");
        assert_eq!((now.listen, now.data_path), (before.listen, before.data_path));
    }

    #[test]
    fn a_node_stays_where_it_can() {
        let file = file("0.0.0.0:2377", "198.18.0.11");
        let stays =
            |file: &NodeFile, addresses: &[&str], to: &str| moved(&own(addresses), file, at(to)).is_none();
        assert!(stays(&file, &["198.18.0.11", "198.18.0.51"], "198.18.0.51"), "the address is there still");
        assert!(stays(&file, &[], "198.18.0.51"), "the cable is out");
        assert!(stays(&file, &["fd00::1"], "fd00::1"), "tunnels are of one family");
        let balanced = NodeFile { advertise_is_own: false, ..file };
        assert!(stays(&balanced, &["198.18.0.51"], "198.18.0.51"), "it never was the node's own");
    }
}
