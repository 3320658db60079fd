//! What programs do, in the same words whether the tables tell it or a packet went so.

use std::net::SocketAddrV4;

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

/// Of a socket: the backend that it is sent to, or a refusal.
pub fn socket_hop(protocol: ProtocolNumber, backend: Option<SocketAddrV4>) -> String {
    let program = socket_program(protocol).label();
    match backend {
        Some(backend) => format!("{program}: translated to {backend}"),
        None => format!("{program}: refused"),
    }
}

/// The call fails, for there is no backend.
pub fn refused(protocol: ProtocolNumber) -> TraceEnd {
    let (program, reason) = (socket_program(protocol), DropReason::NoBackend);
    TraceEnd::Refused { program: program.label().to_owned(), reason: reason.label().to_owned() }
}

fn socket_program(protocol: ProtocolNumber) -> ProgramId {
    if protocol == protocol::UDP { ProgramId::MeshSendmsg4 } else { ProgramId::MeshConnect4 }
}

/// A task that reaches itself.
pub fn within_sandbox(destination: SocketAddrV4) -> TraceEnd {
    TraceEnd::Sandbox { destination, interface: "lo".to_owned(), task: String::new() }
}
