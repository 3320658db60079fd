//! What happens, one after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use control_agent::Input;
use control_gossip::core::message::Message;
use control_model::object::TaskStatus;
use control_model::{AssignmentUpdate, Generation, TaskId};

use crate::host::HostId;
use crate::log::Write;
use crate::manager::Ends;

/// A write on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A session by its number, of both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionNo(pub u64);

/// Statuses of one message.
pub type Batch = Vec<(TaskId, TaskStatus)>;

pub enum Event {
    /// Managers look after each other.
    Raft,
    /// A proposer looks what became of its write.
    Write(Ticket),
    /// A write reaches whom the proposer took for the leader, in that term.
    Append {
        ticket: Ticket,
        leader: HostId,
        term: u64,
    },
    Commit,
    /// A manager hears from the leader.
    Replicate(HostId),
    /// The leader's loops have something to do.
    Loops {
        host: HostId,
        term: u64,
    },
    Probe {
        host: HostId,
        term: u64,
    },
    ProbeArrives {
        leader: HostId,
        term: u64,
        at: HostId,
    },
    ProbeAnswered {
        leader: HostId,
        term: u64,
        by: HostId,
    },
    Judge {
        host: HostId,
        term: u64,
    },
    /// A follower tells the leader who lives.
    Report {
        host: HostId,
        life: u64,
    },
    ReportArrives {
        leader: HostId,
        report: control_rpc::pb::LivenessReport,
    },

    Dial {
        host: HostId,
        life: u64,
    },
    OpenArrives(SessionNo),
    /// Open, with the managers of the cluster, or refused.
    OpenAnswered(SessionNo, Option<Vec<SocketAddr>>),
    /// The first message of the assignments.
    StreamBegins {
        no: SessionNo,
        n_tries: u32,
    },
    StreamFlush(SessionNo),
    StreamSend(SessionNo),
    Update(SessionNo, AssignmentUpdate),
    Beat(SessionNo),
    /// Time for the next one, if none has gone out since that one.
    BeatDue(SessionNo, u64),
    BeatArrives(SessionNo, Generation),
    BeatAnswered(SessionNo, bool),
    BeatLate(SessionNo, u64),
    Statuses(SessionNo),
    StatusesArrive(SessionNo, Batch),
    StatusesAnswered(SessionNo, Batch, bool),
    /// The agent's end hears that the session is over.
    SessionEnds(SessionNo),
    /// The manager's end does.
    SessionGone(SessionNo),

    /// The daemon's task machine has a deadline.
    Desk {
        host: HostId,
        life: u64,
    },
    /// A call of the runtime has ended.
    Called {
        host: HostId,
        life: u64,
        input: Box<Input>,
    },
    /// The process is made.
    Started {
        host: HostId,
        life: u64,
        task: TaskId,
    },
    /// The process ends by itself or by its signal.
    Exits {
        host: HostId,
        task: TaskId,
        pid: i32,
        code: i32,
    },
    /// A pass of the data plane's driver.
    Pass {
        host: HostId,
        life: u64,
    },
    DaemonStarts(HostId),
    /// A machine has its power again.
    Power(HostId),
    /// One has lost it so long ago that nobody sends to it any more.
    OutOfRings {
        host: HostId,
        since: Duration,
    },

    /// A daemon's gossip has a deadline.
    GossipDue {
        host: HostId,
        life: u64,
    },
    Gossip {
        from: HostId,
        to: HostId,
        message: Box<Message>,
    },
    /// A probe of gossip reaches a data path.
    Look {
        by: HostId,
        life: u64,
        at: HostId,
    },
    LookAnswered {
        by: HostId,
        life: u64,
        at: HostId,
    },
    Exchange {
        from: HostId,
        life: u64,
        with: HostId,
    },
    /// The agent, and the leader's judgement, hear what gossip thinks.
    Opinion {
        host: HostId,
        life: u64,
    },
    /// A user or a fault does something.
    Act,
}

impl Event {
    /// The machine whose daemon takes the event. `None` of what needs no daemon, or is nobody's.
    pub fn waits_for(
        &self,
        sessions: &BTreeMap<SessionNo, Ends>,
        writes: &BTreeMap<Ticket, Write>,
    ) -> Option<HostId> {
        let agent = |no: &SessionNo| sessions.get(no).map(|ends| ends.agent);
        let manager = |no: &SessionNo| sessions.get(no).map(|ends| ends.manager);
        match self {
            Self::Write(ticket) => writes.get(ticket).map(|write| write.host),
            Self::Append { leader, .. }
            | Self::ProbeAnswered { leader, .. }
            | Self::ReportArrives { leader, .. } => Some(*leader),
            Self::OpenArrives(no)
            | Self::StreamFlush(no)
            | Self::StreamSend(no)
            | Self::StreamBegins { no, .. }
            | Self::BeatArrives(no, _)
            | Self::StatusesArrive(no, _)
            | Self::SessionGone(no) => manager(no),
            Self::OpenAnswered(no, _)
            | Self::Update(no, _)
            | Self::Beat(no)
            | Self::BeatDue(no, _)
            | Self::BeatAnswered(no, _)
            | Self::BeatLate(no, _)
            | Self::Statuses(no)
            | Self::StatusesAnswered(no, ..)
            | Self::SessionEnds(no) => agent(no),
            Self::Replicate(host)
            | Self::Loops { host, .. }
            | Self::Probe { host, .. }
            | Self::Judge { host, .. }
            | Self::Report { host, .. }
            | Self::Dial { host, .. }
            | Self::Desk { host, .. }
            | Self::Called { host, .. }
            | Self::Pass { host, .. }
            | Self::GossipDue { host, .. }
            | Self::Opinion { host, .. } => Some(*host),
            Self::Gossip { to, .. } | Self::Exchange { with: to, .. } => Some(*to),
            Self::LookAnswered { by, .. } => Some(*by),
            // The kernel answers, the runtime's own processes work on, and the rest is no daemon's.
            Self::ProbeArrives { .. }
            | Self::Look { .. }
            | Self::Started { .. }
            | Self::Exits { .. }
            | Self::Raft
            | Self::Commit
            | Self::Act
            | Self::DaemonStarts(_)
            | Self::Power(_)
            | Self::OutOfRings { .. } => None,
        }
    }
}
