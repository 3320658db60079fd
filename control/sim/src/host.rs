//! A machine: its power and clock, what its kernel holds, its containers, and the daemon on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use control_agent::{Desk, Managers, NodeContext, Outbox};
use control_model::executor::Exit;
use control_model::gossip::GOSSIP_PORT;
use control_model::object::{Cluster, NodeDescription, TaskStatus};
use control_model::spec::{Platform, Resources};
use control_model::{EvenClock, NodeId, Task, TaskId, Timestamp};
use control_store::State;
use dataplane_model::{NodeView, Report};

use crate::gossip::Gossip;
use crate::manager::Manager;

/// A machine by its number, from 0. Managers come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub usize);

/// Bits of the first node's id.
const FIRST_NODE: u128 = 1000;
const MANAGER_PORT: u16 = 2377;

impl HostId {
    pub fn node(self) -> NodeId {
        NodeId::from_bits(FIRST_NODE + self.0 as u128)
    }

    /// The machine of a node; `None` if it is of none.
    pub fn of_node(node: NodeId) -> Option<Self> {
        usize::try_from(node.bits().checked_sub(FIRST_NODE)?).ok().map(Self)
    }

    pub fn ip(self) -> IpAddr {
        let number = u32::try_from(self.0).expect("few machines");
        Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits() + number).into()
    }

    /// Where its manager listens.
    pub fn addr(self) -> SocketAddr {
        SocketAddr::new(self.ip(), MANAGER_PORT)
    }

    /// The machine whose manager listens there.
    pub fn of_addr(addr: SocketAddr) -> Option<Self> {
        let IpAddr::V4(ip) = addr.ip() else { return None };
        usize::try_from(ip.to_bits() - Ipv4Addr::new(198, 18, 0, 1).to_bits()).ok().map(Self)
    }

    /// What its agent says of it.
    pub fn description(self, has_gossip: bool) -> NodeDescription {
        NodeDescription {
            hostname: format!("host{}", self.0),
            platform: Platform { os: "linux".into(), architecture: "x86_64".into() },
            resources: Resources { nano_cpus: 8_000_000_000, memory_bytes: 8 << 30 },
            data_path_addr: Some(self.ip()),
            addresses: vec![self.ip()],
            gossip_addr: has_gossip.then(|| SocketAddr::new(self.ip(), GOSSIP_PORT)),
            ..NodeDescription::default()
        }
    }

    pub fn context(self) -> NodeContext {
        NodeContext {
            node: self.node(),
            hostname: format!("host{}", self.0),
            vtep: self.ip(),
            vxlan_port: Cluster::DATA_PATH_PORT,
        }
    }
}

/// All of a machine.
pub struct Host {
    pub id: HostId,
    pub is_powered: bool,
    /// How much its wall clock is ahead of the true time, nanoseconds.
    pub clock_ahead: i64,
    /// Its daemon stands still until then.
    pub stalled_until: Duration,
    pub path: DataPath,
    pub containers: BTreeMap<TaskId, Container>,
    /// Calls of the runtime fail.
    pub runtime_fails: bool,
    /// What a manager's disk holds: entries applied, and the state they make.
    pub replica: Option<Replica>,
    pub daemon: Option<Daemon>,
    /// Counts daemons: what belongs to an earlier one is nobody's.
    pub life: u64,
    pub n_processes: i32,
}

/// A manager's replica of the state.
#[derive(Clone, Default)]
pub struct Replica {
    pub applied: usize,
    pub state: Arc<State>,
}

/// What the kernel forwards by, and the driver that is to make it so.
#[derive(Default)]
pub struct DataPath {
    /// Tasks that the kernel's load balancers send new flows to.
    pub routes: BTreeSet<String>,
    /// The view that the kernel holds; it outlives the daemon.
    pub kernel: Option<NodeView>,
    /// Given by the present daemon, and not in the kernel yet.
    pub wanted: Option<NodeView>,
    pub report: Report,
    /// Every pass fails.
    pub is_stuck: bool,
    /// The data path answers no probe and forwards nothing.
    pub is_dead: bool,
    pub is_pass_due: bool,
}

/// A task's container.
pub struct Container {
    pub task: Task,
    pub process: Process,
    /// The present daemon waits for its end.
    pub is_waited_for: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    Made,
    Runs { pid: i32, since: Duration },
    Ended(Exit),
}

impl Container {
    pub fn runs(&self) -> bool {
        matches!(self.process, Process::Runs { .. })
    }
}

/// One life of `meshd`.
pub struct Daemon {
    pub life: u64,
    pub desk: Desk,
    pub outbox: Outbox,
    pub managers: Managers,
    pub session: Option<AgentSession>,
    /// Sessions that failed in a row.
    pub attempts: u32,
    /// When the task machine is looked at next.
    pub due_at: Option<Duration>,
    pub manager: Option<Manager>,
    pub gossip: Option<Gossip>,
    /// What it measures spans by, and stamps.
    pub clock: EvenClock,
}

/// The agent's end of a session.
pub struct AgentSession {
    pub no: u64,
    pub with: HostId,
    pub is_open: bool,
    pub opened_at: Duration,
    /// Statuses on their way.
    pub sending: Option<Vec<(TaskId, TaskStatus)>>,
    /// Heartbeats sent and answered.
    pub n_beats: u64,
    pub n_answers: u64,
    /// The generation that the last one told.
    pub told: dataplane_model::Generation,
}

impl Host {
    pub fn new(id: HostId, is_manager: bool) -> Self {
        Self {
            id,
            is_powered: true,
            clock_ahead: 0,
            stalled_until: Duration::ZERO,
            path: DataPath::default(),
            containers: BTreeMap::new(),
            runtime_fails: false,
            replica: is_manager.then(Replica::default),
            daemon: None,
            life: 0,
            n_processes: 0,
        }
    }

    pub fn manager(&self) -> Option<&Manager> {
        self.daemon.as_ref()?.manager.as_ref()
    }

    pub fn manager_mut(&mut self) -> Option<&mut Manager> {
        self.daemon.as_mut()?.manager.as_mut()
    }

    /// Its wall clock.
    pub fn wall(&self, now: Duration) -> Timestamp {
        /// So that no clock goes below the epoch.
        const BEGIN: Timestamp = Timestamp(1_700_000_000_000_000_000);
        let true_time = BEGIN.after(now);
        Timestamp(true_time.0 + self.clock_ahead)
    }

    /// New flows are sent to the task by this machine.
    pub fn routes_to(&self, task_name: &str) -> bool {
        self.is_powered && !self.path.is_dead && self.path.routes.contains(task_name)
    }
}

/// The clock that never jumps.
pub fn steady(now: Duration) -> Timestamp {
    Timestamp(0).after(now + Duration::from_hours(1))
}
