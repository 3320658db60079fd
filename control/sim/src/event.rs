//! What happens, one after the other.

use std::net::SocketAddr;

use control_agent::Input;
use control_model::object::TaskStatus;
use control_model::{AssignmentUpdate, Generation, TaskId};

use crate::host::HostId;

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
    /// A user or a fault does something.
    Act,
}
