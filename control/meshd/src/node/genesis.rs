//! The first entry of a new cluster: the cluster, its first node, and the routing mesh's network.

use control_api::node::InitRequest;
use control_ca::{IssueError, JoinToken, NodeKey, RequestError, RootCa, RootError, key_digest};
use control_manager::clock;
use control_model::authority::{CaState, UnlockKey};
use control_model::object::{ManagerStatus, NodeDescription};
use control_model::spec::{IpamConfig, Role};
use control_model::{Change, Cluster, ClusterId, Network, NetworkId, Node, NodeId, Object, PeerIdentity};
use control_rpc::IdentityPem;
use ipnetwork::{IpNetwork, Ipv4Network};

/// A cluster that is about to begin.
pub struct Genesis {
    pub identity: PeerIdentity,
    pub pem: IdentityPem,
    /// UDP port of the tunnels.
    pub data_path_port: u16,
    /// Locks the managers' disks, with autolock.
    pub unlock_key: Option<UnlockKey>,
    pub changes: Vec<Change>,
}

/// Why no cluster could be made.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    #[error("can't make the cluster's root")]
    Root(#[from] RootError),
    #[error("can't make the node's key")]
    Key(#[from] RequestError),
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl Genesis {
    /// Makes root, tokens, the first node's certificate, and the objects of the first entry. The routing mesh's subnet is none
    /// of the node's `own_networks`.
    pub fn new(
        request: &InitRequest,
        manager: ManagerStatus,
        description: NodeDescription,
        own_networks: &[IpNetwork],
    ) -> Result<Self, GenesisError> {
        let now = clock::now();
        let root = RootCa::generate(now)?;
        let identity = PeerIdentity {
            node_id: NodeId::from_bits(rand::random()),
            role: Role::Manager,
            cluster_id: ClusterId::from_bits(rand::random()),
        };
        let key = NodeKey::generate()?;
        let certificate = root.issue(&key.csr_pem, identity, now, request.cluster.node_cert_expiry)?;
        let pem = IdentityPem { certificate, key: key.key_pem, roots: root.cert_pem().to_owned() };
        let mut node =
            Node { description, manager: Some(manager), ..Node::new(identity.node_id, identity.role) };
        node.spec.availability = request.availability;
        let cluster = cluster(request, identity.cluster_id, &root);
        let unlock_key = cluster.ca.unlock_key;
        let mut ingress = Network::ingress(NetworkId::from_bits(rand::random()));
        ingress.spec.ipam.extend(ingress_subnet(&cluster, own_networks));
        let objects = [
            Object::Cluster(Box::new(cluster)),
            Object::Node(Box::new(node)),
            Object::Network(Box::new(ingress)),
        ];
        let data_path_port = or_default(request.data_path_port, Cluster::DATA_PATH_PORT);
        let changes = objects.into_iter().map(Change::Create).collect();
        Ok(Self { identity, pem, data_path_port, unlock_key, changes })
    }
}

fn cluster(request: &InitRequest, id: ClusterId, root: &RootCa) -> Cluster {
    let token = || JoinToken::new(root.cert_pem(), rand::random()).to_string();
    let defaults = Cluster::new(id);
    Cluster {
        spec: request.cluster.clone(),
        ca: CaState {
            root_cert: root.cert_pem().to_owned(),
            root_key: root.key_pem(),
            worker_token: token(),
            manager_token: token(),
            unlock_key: request.cluster.autolock.then(|| UnlockKey(rand::random())),
            issuer: key_digest(root.cert_pem()),
            last_forced_rotation: request.cluster.force_rotate,
            ..CaState::default()
        },
        default_address_pool: or_default(request.default_address_pool.clone(), defaults.default_address_pool),
        subnet_size: or_default(request.subnet_size, defaults.subnet_size),
        data_path_port: or_default(request.data_path_port, defaults.data_path_port),
        ..defaults
    }
}

/// The first subnet of the pool that is none of the node's own: its processes reach the routing mesh by a route of the node
/// itself. `None` where that is the pool's first, which the allocator gives by itself, or where there is none.
fn ingress_subnet(cluster: &Cluster, own_networks: &[IpNetwork]) -> Option<IpamConfig> {
    let pools = cluster.default_address_pool.iter().filter_map(|pool| match pool {
        IpNetwork::V4(pool) => Some(*pool),
        IpNetwork::V6(_) => None,
    });
    let mut subnets = pools.flat_map(|pool| subnets(pool, cluster.subnet_size)).enumerate();
    let is_own = |subnet: Ipv4Network| {
        own_networks.iter().any(|own| matches!(own, IpNetwork::V4(own) if own.overlaps(subnet)))
    };
    let (position, subnet) = subnets.find(|(_, subnet)| !is_own(*subnet))?;
    (position > 0).then(|| IpamConfig { subnet: subnet.into(), range: None, gateway: None })
}

fn subnets(pool: Ipv4Network, prefix: u8) -> impl Iterator<Item = Ipv4Network> {
    let prefix = prefix.clamp(pool.prefix(), 32);
    let step = 1_usize << (32 - u32::from(prefix));
    let (first, last) = (pool.network().to_bits(), pool.broadcast().to_bits());
    (first..=last).step_by(step).filter_map(move |bits| Ipv4Network::new(bits.into(), prefix).ok())
}

/// Zero, or nothing, stands for "not given".
fn or_default<T: Default + PartialEq>(given: T, default: T) -> T {
    if given == T::default() { default } else { given }
}

#[cfg(test)]
mod tests {
    use control_ca::Certificate;
    use control_model::{Entry, RequestId};
    use control_store::State;

    use super::*;

    #[test]
    fn a_new_cluster_has_a_manager_an_ingress_network_and_two_tokens_of_its_root() {
        let request = InitRequest { subnet_size: 26, ..InitRequest::default() };
        let manager = ManagerStatus { raft_id: 7, addr: "198.18.0.11:2377".parse().expect("an address") };
        let genesis = Genesis::new(&request, manager, NodeDescription::default(), &[]).expect("made");
        let mut state = State::default();
        let entry = Entry { request: RequestId(1), at: clock::now(), changes: genesis.changes };
        state.apply(1, &entry).expect("the first entry fits an empty state");

        let cluster = state.cluster().expect("a cluster");
        assert_eq!((cluster.subnet_size, cluster.data_path_port), (26, 4789));
        assert_eq!(cluster.default_address_pool, ["10.0.0.0/8".parse().expect("a network")]);
        assert_ne!(cluster.ca.worker_token, cluster.ca.manager_token);
        for token in [&cluster.ca.worker_token, &cluster.ca.manager_token] {
            let token: JoinToken = token.parse().expect("a token");
            token.verify_root(&cluster.ca.root_cert).expect("of this root");
        }
        let certificate = Certificate::verify(&genesis.pem.certificate, &genesis.pem.roots, clock::now());
        assert_eq!(certificate.expect("valid").identity, genesis.identity);
        let node = state.nodes().get(&genesis.identity.node_id).expect("the first node");
        assert_eq!(node.manager, Some(manager));
        assert!(state.ingress_network().is_some());
    }

    #[test]
    fn the_routing_mesh_keeps_out_of_the_nodes_own_networks() {
        let chosen = |subnet_size, own: &[&str]| {
            let request = InitRequest { subnet_size, ..InitRequest::default() };
            let root = RootCa::generate(clock::now()).expect("made");
            let cluster = cluster(&request, ClusterId::from_bits(1), &root);
            let own: Vec<IpNetwork> = own.iter().map(|own| own.parse().expect("a network")).collect();
            ingress_subnet(&cluster, &own).map(|ipam| ipam.subnet.to_string())
        };

        assert_eq!(chosen(0, &["192.168.1.0/24", "10.0.1.0/24", "fd00::/64"]), None);
        assert_eq!(chosen(0, &["10.0.0.0/24"]).as_deref(), Some("10.0.1.0/24"));
        assert_eq!(chosen(26, &["10.0.0.0/25", "10.0.0.192/26"]).as_deref(), Some("10.0.0.128/26"));
        assert_eq!(chosen(0, &["10.0.0.0/16", "10.1.0.0/24"]).as_deref(), Some("10.1.1.0/24"));
        assert_eq!(chosen(0, &["10.0.0.0/8"]), None);
    }
}
