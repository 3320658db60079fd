//! Which nodes may run a task, and one sentence for each reason why not (swarmkit `manager/scheduler/filter.go`).

use control_model::Task;
use control_model::constraint::{Constraint, node_matches, parse_constraints};
use control_model::object::NodeState;
use control_model::spec::{Availability, Platform, Protocol, Resources};

use crate::node_info::{NodeInfo, host_ports};

/// Why a node may not run a task. In the order in which they are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    NotReady,
    DataPath,
    Resources,
    Unreadable,
    Constraints,
    Platform,
    HostPort,
    MaxReplicas,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::NotReady,
        Self::DataPath,
        Self::Resources,
        Self::Unreadable,
        Self::Constraints,
        Self::Platform,
        Self::HostPort,
        Self::MaxReplicas,
    ];

    /// swarmkit's words, but for what it doesn't look at: the data path, and constraints that can't be read.
    fn explain(self, n_nodes: usize) -> String {
        let nodes = if n_nodes == 1 { "1 node".to_owned() } else { format!("{n_nodes} nodes") };
        match self {
            Self::NotReady => format!("{nodes} not available for new tasks"),
            Self::DataPath => format!("data path does not answer on {nodes}"),
            Self::Resources => format!("insufficient resources on {nodes}"),
            Self::Unreadable => "scheduling constraints can not be read".to_owned(),
            Self::Constraints => format!("scheduling constraints not satisfied on {nodes}"),
            Self::Platform => format!("unsupported platform on {nodes}"),
            Self::HostPort => format!("host-mode port already in use on {nodes}"),
            Self::MaxReplicas => "max replicas per node limit exceed".to_owned(),
        }
    }
}

/// What a task asks of a node.
#[derive(Debug)]
pub(crate) struct Filters<'a> {
    task: &'a Task,
    /// `None` if they can't be read.
    constraints: Option<Vec<Constraint>>,
    host_ports: Vec<(Protocol, u16)>,
    reservations: Resources,
}

/// How many nodes were refused for which reason.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals([usize; Refusal::ALL.len()]);

impl<'a> Filters<'a> {
    /// The API has validated the constraints. What another version wrote and this one can't read may exclude any node: so no
    /// node will do (swarmkit's would), as for the orchestrator.
    pub(crate) fn new(task: &'a Task) -> Self {
        Self {
            task,
            constraints: parse_constraints(&task.spec.placement.constraints).ok(),
            host_ports: host_ports(task).collect(),
            reservations: task.spec.resources.reservations,
        }
    }

    /// Whether `node` may run the task; a refusal is counted.
    pub(crate) fn check(&self, node: &NodeInfo, refusals: &mut Refusals) -> bool {
        let refusal = Refusal::ALL.into_iter().find(|refusal| !self.passes(*refusal, node));
        if let Some(refusal) = refusal {
            refusals.0[refusal as usize] += 1;
        }
        refusal.is_none()
    }

    fn passes(&self, refusal: Refusal, info: &NodeInfo) -> bool {
        let placement = &self.task.spec.placement;
        match refusal {
            Refusal::NotReady => {
                info.node.status.state == NodeState::Ready
                    && info.node.spec.availability == Availability::Active
            }
            Refusal::DataPath => info.node.status.data_path_alive || !needs_data_path(self.task),
            Refusal::Resources => {
                let (asked, available) = (self.reservations, info.available());
                (asked.nano_cpus <= 0 || asked.nano_cpus <= available.nano_cpus)
                    && (asked.memory_bytes <= 0 || asked.memory_bytes <= available.memory_bytes)
                    && info.claim(&self.task.spec.resources.generic).is_some()
            }
            Refusal::Unreadable => self.constraints.is_some(),
            Refusal::Constraints => {
                self.constraints.as_ref().is_some_and(|constraints| node_matches(constraints, &info.node))
            }
            Refusal::Platform => {
                let of_node = &info.node.description.platform;
                placement.platforms.is_empty() || placement.platforms.iter().any(|p| runs_on(p, of_node))
            }
            Refusal::HostPort => !self.host_ports.iter().any(|port| info.has_host_port(*port)),
            Refusal::MaxReplicas => {
                let limit = usize::try_from(placement.max_replicas_per_node).unwrap_or(usize::MAX);
                limit == 0 || info.n_active_of(self.task.service) < limit
            }
        }
    }
}

impl Refusals {
    /// What is said of a task for which no node was found.
    pub(crate) fn explain(&self) -> String {
        match self.reasons() {
            reasons if reasons.is_empty() => "no suitable node".into(),
            reasons => format!("no suitable node ({reasons})"),
        }
    }

    /// All reasons, the one that hit most nodes first: what is said of a task whose node is given.
    pub(crate) fn reasons(&self) -> String {
        let mut counted: Vec<(usize, Refusal)> =
            Refusal::ALL.into_iter().map(|refusal| (self.0[refusal as usize], refusal)).collect();
        counted.sort_by_key(|(n_nodes, _)| std::cmp::Reverse(*n_nodes));
        let reasons: Vec<String> = counted
            .into_iter()
            .filter(|(n_nodes, _)| *n_nodes > 0)
            .map(|(n_nodes, refusal)| refusal.explain(n_nodes))
            .collect();
        reasons.join("; ")
    }
}

/// Others must reach the task, or it others. On a node whose data path is dead it would run and be in no load balancer, and an
/// update would stop those that serve for it. A task without networks and ports talks through its node's own stack: which
/// tunnels answer is nothing to it, and a node that is heard can run it.
fn needs_data_path(task: &Task) -> bool {
    !task.attachments.is_empty() || !task.spec.networks.is_empty() || !task.ports.is_empty()
}

/// An empty part of the image's platform matches all.
fn runs_on(image: &Platform, node: &Platform) -> bool {
    let (asked, has) = (architecture(&image.architecture), architecture(&node.architecture));
    (asked.is_empty() || asked == has) && (image.os.is_empty() || image.os == node.os)
}

/// One name per architecture: the kernel's becomes Go's.
fn architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
