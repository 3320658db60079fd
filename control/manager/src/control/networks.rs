//! Networks: list, look up, create, remove.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use control_allocator::{check_beside_pool, check_subnets};
use control_model::spec::{NetworkSpec, PublishMode};
use control_model::validate::validate_network;
use control_model::{Change, Network, NetworkId, Object, TaskState};
use control_store::State;
use futures::StreamExt;
use ipnetwork::IpNetwork;

use super::Control;
use super::error::{ControlError, Kind};
use super::lookup::find;

/// How long a create waits for an object under removal that holds its name, port or subnet: the default grace of a
/// stopping task, and the drain before it, with some room.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(20);

impl Control {
    /// The networks that users see, by id.
    pub async fn list_networks(&self) -> Result<Vec<Arc<Network>>, ControlError> {
        Ok(visible(&*self.read().await?).cloned().collect())
    }

    /// The network that `input` names: id, name, or beginning of an id.
    pub async fn network(&self, input: &str) -> Result<Arc<Network>, ControlError> {
        find_network(&*self.read().await?, input).cloned()
    }

    /// Makes a network. One that is being removed and still holds the name, the subnet or
    /// the routing mesh is waited for.
    pub async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        validate_network(&spec)?;
        self.wait_while(|state| {
            let holds = |n: &Network| {
                n.spec.name == spec.name || (n.spec.ingress && spec.ingress) || overlaps(&spec, n)
            };
            state.networks().iter().any(|n| n.pending_delete && holds(n))
        })
        .await;
        let id = NetworkId::from_bits(rand::random());
        self.write(|state| {
            if state.network_by_name(&spec.name).is_some() {
                return Err(ControlError::NetworkExists(spec.name.clone()));
            }
            if spec.ingress
                && let Some(present) = state.ingress_network()
            {
                return Err(ControlError::IngressExists(present.id));
            }
            check_beside_pool(state, &spec)?;
            check_subnets(state, &spec).map_err(ControlError::Subnet)?;
            let network = Network::new(id, spec.clone());
            Ok((vec![Change::Create(Object::Network(Box::new(network)))], id))
        })
        .await
    }

    /// Removes the network `input` if no service uses it: not shown any more at once, gone when the last task left.
    pub async fn remove_network(&self, input: &str) -> Result<(), ControlError> {
        self.write(|state| {
            let old = find_network(state, input)?;
            check_unused(state, old)?;
            let network = Network { pending_delete: true, ..(**old).clone() };
            let expected = old.meta.version;
            Ok((vec![Change::Update { object: Object::Network(Box::new(network)), expected }], ()))
        })
        .await
    }

    /// Waits while `blocked`, for a bounded time; what blocks still after it, the caller's own checks refuse.
    pub(super) async fn wait_while(&self, blocked: impl Fn(&State) -> bool) {
        if !blocked(&self.store.state()) {
            return;
        }
        let wait = async {
            let (mut state, mut events) = self.store.subscribe();
            while blocked(&state) {
                if events.next().await.is_some() {
                    state = self.store.state();
                } else {
                    (state, events) = self.store.subscribe();
                }
            }
        };
        let _ = tokio::time::timeout(REMOVAL_TIMEOUT, wait).await;
    }
}

fn visible(state: &State) -> impl Iterator<Item = &Arc<Network>> {
    state.networks().iter().filter(|network| !network.pending_delete)
}

/// The network of `state` that `input` names.
pub fn find_network<'a>(state: &'a State, input: &str) -> Result<&'a Arc<Network>, ControlError> {
    let by_id = |id| state.networks().get(&id).filter(|network| !network.pending_delete);
    find(Kind::Network, input, by_id, || visible(state).map(|n| (n.id, n)), |n| Cow::Borrowed(&n.spec.name))
}

/// Whether a subnet asked for shares an address with one that `other` has or asked for.
fn overlaps(spec: &NetworkSpec, other: &Network) -> bool {
    let held = other.state.as_ref().map_or(&other.spec.ipam, |state| &state.ipam);
    spec.ipam.iter().any(|wanted| held.iter().any(|held| overlap(wanted.subnet, held.subnet)))
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

fn check_unused(state: &State, network: &Network) -> Result<(), ControlError> {
    let mut services = state.services().iter().filter(|service| !service.pending_delete);
    if network.spec.ingress {
        let needs = |port: &control_model::spec::PortConfig| port.mode == PublishMode::Ingress;
        return match services.find(|service| service.spec.endpoint.ports.iter().any(needs)) {
            Some(service) => Err(ControlError::IngressInUse(service.id)),
            None => Ok(()),
        };
    }
    if let Some(user) = services.find(|s| s.spec.task.networks.iter().any(|a| a.target == network.id)) {
        return Err(ControlError::NetworkInUse(network.id, user.id));
    }
    // A task that is wanted no more leaves by itself; the network goes after it.
    let user = state.tasks().iter().find(|task| {
        task.desired_state <= TaskState::Complete
            && task.status.state <= TaskState::Running
            && task.attachments.iter().any(|a| a.network == network.id)
            && (task.is_attachment()
                || state.services().get(&task.service).is_some_and(|service| !service.pending_delete))
    });
    user.map_or(Ok(()), |task| Err(ControlError::NetworkInUseByTask(network.id, task.id)))
}
