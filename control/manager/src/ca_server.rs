//! The certificate authority's server: tells the root, gives new nodes their first certificate for a join token,
//! and renews certificates in the role that the cluster now wants.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;

use control_ca::{IssueError, JoinToken, RootCa, TokenRefused, check_former, role_of_token};
use control_model::authority::UnlockKey;
use control_model::object::Cluster;
use control_model::spec::{Availability, Role};
use control_model::{Change, Node, NodeId, Object, PeerIdentity};
use control_rpc::pb;
use control_rpc::pb::ca_server::Ca;
use control_rpc::{require_manager, require_node};
use control_store::{ProposeError, ReadError, ReplicatedStore, State};
use tonic::{Request, Response, Status};

use crate::clock;
use crate::dispatcher::{Trust, removed, role_to_hold, role_word};

/// A renewal's write is repeated this often when others write the node at the same moment.
const ATTEMPTS: u32 = 5;

/// The service. The signing key is in the replicated state: every manager can sign.
pub struct CaServer {
    store: Arc<dyn ReplicatedStore>,
    trust: Arc<Trust>,
}

/// A certificate that was made, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub identity: PeerIdentity,
    pub certificate_pem: String,
    pub root_pem: String,
    /// UDP port of the cluster's tunnels.
    pub data_path_port: u16,
}

impl CaServer {
    pub fn new(store: Arc<dyn ReplicatedStore>) -> Self {
        Self::counting(store, Arc::default())
    }

    /// One that counts with others what nodes ask for.
    pub fn counting(store: Arc<dyn ReplicatedStore>, trust: Arc<Trust>) -> Self {
        Self { store, trust }
    }

    /// Makes a new node of whoever holds `token`, in the token's role. `data_path` is its tunnel end, if it says so.
    pub async fn join(
        &self,
        csr_pem: &str,
        token: &str,
        availability: Availability,
        data_path: Option<IpAddr>,
    ) -> Result<Issued, Status> {
        let (cluster, role) = self.role_of(token).await?;
        check_family(&self.store.state(), data_path)?;
        let identity =
            PeerIdentity { node_id: NodeId::from_bits(rand::random()), role, cluster_id: cluster.id };
        let issued = issue(&cluster, csr_pem, identity)?;
        let mut node = Node::new(identity.node_id, role);
        node.spec.availability = availability;
        self.store.propose(vec![Change::Create(Object::Node(Box::new(node)))]).await.map_err(unwritten)?;
        Ok(issued)
    }

    /// A new certificate for `caller`, in the role that it should hold now. A removed node is refused.
    pub async fn renew(&self, csr_pem: &str, caller: PeerIdentity) -> Result<Issued, Status> {
        self.store.linearize().await.map_err(unread)?;
        let cluster = self.cluster()?;
        let state = self.store.state();
        let node = state.nodes().get(&caller.node_id).ok_or_else(|| removed(caller.node_id))?;
        let identity = PeerIdentity { role: role_to_hold(node), ..caller };
        let issued = issue(&cluster, csr_pem, identity)?;
        self.note_role(identity).await?;
        Ok(issued)
    }

    /// A certificate for a member whose own ran out, and who holds `token`: `former` is that certificate, and the proof
    /// that it is the caller's. Who it is stays: the token is only needed to come back.
    pub async fn come_back(
        &self,
        csr_pem: &str,
        token: &str,
        (former_pem, proof): (&str, &str),
    ) -> Result<Issued, Status> {
        let (cluster, token_role) = self.role_of(token).await?;
        let caller = check_former(former_pem, &cluster.ca.root_cert, (proof, csr_pem), clock::now())
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        let state = self.store.state();
        let node = state.nodes().get(&caller.node_id).ok_or_else(|| removed(caller.node_id))?;
        let identity = PeerIdentity { role: role_to_hold(node), cluster_id: cluster.id, ..caller };
        if (identity.role, token_role) == (Role::Manager, Role::Worker) {
            return Err(Status::permission_denied(
                "this node is a manager: only a manager's token lets it back in",
            ));
        }
        let issued = issue(&cluster, csr_pem, identity)?;
        self.note_role(identity).await?;
        Ok(issued)
    }

    /// A certificate for the manager in whose daemon this runs, when its own has run out: until it has another one nobody
    /// believes it, nor it the others if theirs ran out too. It needs no leave: the root's key is in its replica, and what
    /// that says of the node decides.
    pub fn renew_own(&self, csr_pem: &str, me: PeerIdentity) -> Result<Issued, Status> {
        let cluster = self.cluster()?;
        let state = self.store.state();
        let node = state.nodes().get(&me.node_id).ok_or_else(|| removed(me.node_id))?;
        if role_to_hold(node) != Role::Manager {
            return Err(Status::permission_denied("this node is no manager of the cluster any more"));
        }
        issue(&cluster, csr_pem, me)
    }

    /// The key that managers lock their disks with, if they do, and the version of the cluster that says so. For
    /// managers alone: `caller` must be wanted as one.
    pub async fn unlock_key(&self, caller: NodeId) -> Result<(Option<UnlockKey>, u64), Status> {
        self.store.linearize().await.map_err(unread)?;
        let state = self.store.state();
        let node = state.nodes().get(&caller).ok_or_else(|| removed(caller))?;
        if role_to_hold(node) != Role::Manager {
            return Err(Status::permission_denied("this node is no manager of the cluster any more"));
        }
        let cluster = self.cluster()?;
        Ok((cluster.ca.unlock_key, cluster.meta.version))
    }

    /// The role that `token` gives, and the cluster that says so.
    async fn role_of(&self, token: &str) -> Result<(Arc<Cluster>, Role), Status> {
        self.check_here(token)?;
        // A replica that is behind would take a token that was rotated away.
        self.store.linearize().await.map_err(unread)?;
        let cluster = self.cluster()?;
        let role = known_role(token, &cluster)?;
        Ok((cluster, role))
    }

    /// Refuses what can't be a token of this cluster before any other manager is asked, and lets what may be one of which
    /// this replica has yet to hear through at a bounded rate. The root that a token names is that which this manager shows: who
    /// joins has compared them.
    fn check_here(&self, token: &str) -> Result<(), Status> {
        let Ok(cluster) = self.cluster() else { return Ok(()) };
        let parsed = JoinToken::from_str(token).map_err(|_| no_token(TokenRefused))?;
        parsed.verify_root(&cluster.ca.root_cert).map_err(|_| no_token(TokenRefused))?;
        known_role(token, &cluster).map(drop).or_else(|_| self.trust.guess(clock::monotonic()))
    }

    fn cluster(&self) -> Result<Arc<Cluster>, Status> {
        let state = self.store.state();
        state.cluster().cloned().ok_or_else(|| Status::unavailable("the cluster is not ready yet"))
    }

    async fn note_role(&self, identity: PeerIdentity) -> Result<(), Status> {
        for _ in 0..ATTEMPTS {
            let state = self.store.state();
            let node = state.nodes().get(&identity.node_id).ok_or_else(|| removed(identity.node_id))?;
            if node.certificate_role == identity.role {
                return Ok(());
            }
            let object = Node { certificate_role: identity.role, ..(**node).clone() };
            let change =
                Change::Update { object: Object::Node(Box::new(object)), expected: node.meta.version };
            match self.store.propose(vec![change]).await {
                Err(ProposeError::Refused(_)) => {}
                done => return done.map(drop).map_err(unwritten),
            }
        }
        Err(Status::aborted("the node is being changed by others; try again"))
    }
}

fn known_role(token: &str, cluster: &Cluster) -> Result<Role, Status> {
    role_of_token(token, &cluster.ca.worker_token, &cluster.ca.manager_token).map_err(no_token)
}

fn no_token(refused: TokenRefused) -> Status {
    Status::invalid_argument(refused.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unread(error: ReadError) -> Status {
    Status::unavailable(error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unwritten(error: ProposeError) -> Status {
    Status::unavailable(error.to_string())
}

/// A certificate of the root that signs now, with what nodes need that trust an earlier one.
pub fn issue(cluster: &Cluster, csr_pem: &str, identity: PeerIdentity) -> Result<Issued, Status> {
    // During a rotation the next root signs already. Its copy, signed by the one that nodes trust, is part of the chain,
    // and stays so for nodes that were away when the root changed.
    let (cert, key, cross_signed) = match &cluster.ca.rotation {
        Some(next) => (&next.root_cert, &next.root_key, &next.cross_signed),
        None => (&cluster.ca.root_cert, &cluster.ca.root_key, &cluster.ca.cross_signed),
    };
    let root = RootCa::from_pem(cert, key).map_err(|error| Status::internal(error.to_string()))?;
    let leaf = root
        .issue(csr_pem, identity, clock::now(), cluster.spec.node_cert_expiry)
        .map_err(|error| refused(&error))?;
    Ok(Issued {
        identity,
        certificate_pem: leaf + cross_signed,
        root_pem: cluster.ca.root_cert.clone(),
        data_path_port: cluster.data_path_port,
    })
}

fn refused(error: &IssueError) -> Status {
    match error {
        IssueError::BadRequest(_) | IssueError::RequestTooLarge | IssueError::KeyType => {
            Status::invalid_argument(error.to_string())
        }
        IssueError::LifeTooShort | IssueError::Sign(_) => Status::internal(error.to_string()),
    }
}

/// A tunnel has two ends of one family, and every two nodes may need one.
fn check_family(state: &State, data_path: Option<IpAddr>) -> Result<(), Status> {
    let Some(new) = data_path else { return Ok(()) };
    let mut others = state.nodes().iter().filter_map(|node| node.description.data_path_addr);
    match others.find(|other| other.is_ipv4() != new.is_ipv4()) {
        None => Ok(()),
        Some(other) => Err(Status::failed_precondition(format!(
            "this node's data path address {new} is not of the family of the other nodes', like {other}: give an {} address \
             of this node with --advertise-addr or --data-path-addr",
            if other.is_ipv4() { "IPv4" } else { "IPv6" }
        ))),
    }
}

fn parse_data_path(text: &str) -> Result<Option<IpAddr>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = |_| Status::invalid_argument(format!("invalid data path address: {text:?}"));
    text.parse().map(Some).map_err(invalid)
}

/// Docker's word for an availability; none is active.
fn parse_availability(word: &str) -> Result<Availability, Status> {
    match word {
        "" | "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        other => Err(Status::invalid_argument(format!("invalid availability: {other:?}"))),
    }
}

#[tonic::async_trait]
impl Ca for CaServer {
    async fn get_root_certificate(
        &self,
        _request: Request<pb::Empty>,
    ) -> Result<Response<pb::RootCertificate>, Status> {
        Ok(Response::new(pb::RootCertificate { pem: self.cluster()?.ca.root_cert.clone() }))
    }

    async fn issue_node_certificate(
        &self,
        request: Request<pb::IssueRequest>,
    ) -> Result<Response<pb::IssueReply>, Status> {
        let body = request.get_ref();
        let issued = if body.token.is_empty() {
            let caller = require_node(&request)?;
            self.trust.note(caller.node_id, self.trust.renewal(caller.node_id, clock::monotonic()))?;
            self.renew(&body.csr_pem, caller).await?
        } else if !body.former_pem.is_empty() {
            let former = (body.former_pem.as_str(), body.former_proof.as_str());
            self.come_back(&body.csr_pem, &body.token, former).await?
        } else {
            let availability = parse_availability(&body.availability)?;
            let data_path = parse_data_path(&body.data_path_addr)?;
            self.join(&body.csr_pem, &body.token, availability, data_path).await?
        };
        Ok(Response::new(pb::IssueReply {
            node_id: issued.identity.node_id.to_string(),
            cluster_id: issued.identity.cluster_id.to_string(),
            role: role_word(issued.identity.role).to_owned(),
            certificate_pem: issued.certificate_pem,
            root_pem: issued.root_pem,
            data_path_port: issued.data_path_port.into(),
        }))
    }

    async fn get_unlock_key(
        &self,
        request: Request<pb::Empty>,
    ) -> Result<Response<pb::UnlockKeyReply>, Status> {
        let (key, version) = self.unlock_key(require_manager(&request)?.node_id).await?;
        let key = key.map(|key| key.0.to_vec()).unwrap_or_default();
        Ok(Response::new(pb::UnlockKeyReply { key, version }))
    }
}

#[cfg(test)]
mod tests;
