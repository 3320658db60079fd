//! What programs do, in the same words whether the tables tell it or a packet went so.

use std::net::SocketAddr;

use dataplane_model::ProtocolNumber;
use dataplane_model::inspect::TraceEnd;
use ebpf_abi::{DropReason, ProgramId, protocol};

/// A program's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    Passed,
    Forwarded,
    /// For this reason.
    Dropped(&'a str),
}

pub fn packet_hop(program: &str, verdict: Verdict<'_>) -> String {
    match verdict {
        Verdict::Passed => format!("{program}: passed"),
        Verdict::Forwarded => format!("{program}: forwarded"),
        Verdict::Dropped(reason) => format!("{program}: dropped ({reason})"),
    }
}

/// Of a socket of this family: the backend that it is sent to, or a refusal.
pub fn socket_hop(protocol: ProtocolNumber, is_v4: bool, backend: Option<SocketAddr>) -> String {
    let program = socket_program(protocol, is_v4).label();
    match backend {
        Some(backend) => format!("{program}: translated to {backend}"),
        None => format!("{program}: refused"),
    }
}

/// The call fails, for there is no backend.
pub fn refused(protocol: ProtocolNumber, is_v4: bool) -> TraceEnd {
    refused_by(socket_program(protocol, is_v4))
}

/// The same of any program.
pub fn refused_by(program: ProgramId) -> TraceEnd {
    let reason = DropReason::NoBackend;
    TraceEnd::Refused { program: program.label().to_owned(), reason: reason.label().to_owned() }
}

fn socket_program(protocol: ProtocolNumber, is_v4: bool) -> ProgramId {
    match (protocol == protocol::UDP, is_v4) {
        (true, true) => ProgramId::MeshSendmsg4,
        (true, false) => ProgramId::MeshSendmsg6,
        (false, true) => ProgramId::MeshConnect4,
        (false, false) => ProgramId::MeshConnect6,
    }
}

/// The task is told, by its gateway's address.
pub fn no_route() -> TraceEnd {
    TraceEnd::NoRoute { program: ProgramId::MeshTask.label().to_owned() }
}

/// A task that reaches itself.
pub fn within_sandbox(destination: SocketAddr) -> TraceEnd {
    TraceEnd::Sandbox { destination, interface: "lo".to_owned(), task: String::new() }
}
