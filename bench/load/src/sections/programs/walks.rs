//! Which program gets which packet.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use dataplane_kernel::bpf::Bpf;
use ebpf_abi::ProgramId;
use ebpf_packet::vxlan::OVERHEAD4;

use super::node::{self, Node};
use super::replay::{Kind, Replay, Restore, Tunnel};

pub const XDP_NOTHING: &str = "XDP: nothing";
pub const XDP_COUNTING: &str = "XDP: nothing but counting";
pub const XDP_ESTABLISHED: &str = "XDP: client's segment to another node's backend, encapsulated";
pub const XDP_REMEMBERED: &str = "XDP: first segment of a flow, encapsulated and remembered";
pub const XDP_UNKNOWN: &str = "XDP: segment of a flow that is not in the cache, encapsulated";

/// The headers that programs change, up to TCP's checksum; bytes.
const CHANGED: usize = 52;

/// What is measured, and what has to be so that it is as in the middle of a connection.
pub struct Walk {
    pub name: &'static str,
    pub before: fn(&Node) -> Vec<Step>,
    pub measured: fn(&Node) -> Step,
}

/// A packet for a program.
pub struct Step {
    program: Subject,
    pub ifindex: u32,
    packet: Vec<u8>,
    tunnel: Option<Tunnel>,
    another_flow: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Ours(ProgramId),
    /// Returns at once, after the same restoring as ours.
    Nothing(Kind),
    /// Counts the packet as ours do, and returns.
    Counting,
    /// Returns at once.
    Bare(Kind),
}

impl Step {
    const fn of(program: ProgramId, ifindex: u32, packet: Vec<u8>) -> Self {
        Self { program: Subject::Ours(program), ifindex, packet, tunnel: None, another_flow: false }
    }

    /// As it comes out of the tunnel from the other node.
    const fn tunnelled(mut self, vni: u32) -> Self {
        self.tunnel = Some(Tunnel { remote: node::OTHER_NODE, vni });
        self
    }

    /// Every run gets the packet of a client that no run had before.
    const fn of_another_flow(mut self) -> Self {
        self.another_flow = true;
        self
    }

    const fn given_to(mut self, program: Subject) -> Self {
        self.program = program;
        self
    }

    fn kind(&self) -> Kind {
        match self.program {
            Subject::Ours(ProgramId::MeshXdp) | Subject::Counting => Kind::Xdp,
            Subject::Ours(_) => Kind::Tc,
            Subject::Nothing(kind) | Subject::Bare(kind) => kind,
        }
    }

    pub fn is_of_xdp(&self) -> bool {
        self.program == Subject::Ours(ProgramId::MeshXdp)
    }

    /// A program that encapsulates leaves its headers; who does not takes nothing off.
    fn head(&self) -> usize {
        if self.is_of_xdp() { OVERHEAD4 } else { 0 }
    }

    /// The packet, and in front of it what is taken off first.
    pub fn frame(&self) -> Vec<u8> {
        [vec![0; self.head()], self.packet.clone()].concat()
    }

    pub fn replay(&self, bpf: &mut Bpf) -> Result<Replay> {
        let restore = match self.kind() {
            Kind::Xdp => {
                let (len, kept) = (self.head(), self.packet.len());
                Restore::Head { len, kept, another_flow: self.another_flow }
            }
            Kind::Tc => Restore::Bytes { first: &self.packet[..CHANGED], tunnel: self.tunnel },
        };
        match self.program {
            Subject::Ours(program) => {
                let fd = bpf.hooks.programs().get(program)?.fd().context("the program is loaded")?;
                Replay::of(fd.as_fd(), &restore)
            }
            Subject::Nothing(kind) => Replay::of_nothing(kind, Some(&restore)),
            Subject::Counting => Replay::of_counting(&restore),
            Subject::Bare(kind) => Replay::of_nothing(kind, None),
        }
    }

    /// The verdict is the one that the walk is about: sent on, or nothing.
    pub fn expects(&self, verdict: u32) -> bool {
        match (self.program, self.kind()) {
            (Subject::Ours(_), Kind::Xdp) => FORWARDED_XDP.contains(&verdict),
            (Subject::Ours(_), Kind::Tc) => FORWARDED_TC == verdict,
            (_, Kind::Xdp) => PASSED_XDP == verdict,
            (_, Kind::Tc) => PASSED_TC == verdict,
        }
    }
}

/// `XDP_TX` and `XDP_REDIRECT`, `XDP_PASS`, `TC_ACT_REDIRECT`, `TC_ACT_UNSPEC` (`linux/bpf.h`, `linux/pkt_cls.h`).
const FORWARDED_XDP: [u32; 2] = [3, 4];
const PASSED_XDP: u32 = 2;
const FORWARDED_TC: u32 = 7;
const PASSED_TC: u32 = u32::MAX;

const fn at_once(_: &Node) -> Vec<Step> {
    Vec::new()
}

/// The client's connection to the other node's backend, opened.
fn remote_connection(node: &Node) -> Vec<Step> {
    vec![Step::of(ProgramId::MeshXdp, node.uplink, node::client_opens(node::TO_REMOTE))]
}

/// The client's connection to this node's backend by this node, opened and answered.
fn local_connection(node: &Node) -> Vec<Step> {
    let opens = Step::of(ProgramId::MeshUplink, node.uplink, node::client_opens(node::TO_LOCAL));
    let answers = Step::of(ProgramId::MeshTask, node.ingress_end, node::backend_to_client());
    vec![opens, answers]
}

/// The same by the other node, which tunnels the client's packets to here.
fn tunnelled_connection(node: &Node) -> Vec<Step> {
    let opens = node::into_tunnel(node::client_opens(node::TO_LOCAL_BY_OTHER));
    let opens = Step::of(ProgramId::MeshVxlan, node.vxlan, opens).tunnelled(node::INGRESS_VNI);
    let answers = Step::of(ProgramId::MeshTask, node.ingress_end, node::backend_to_client_of_other());
    vec![opens, answers]
}

fn remote_segment(node: &Node) -> Step {
    Step::of(ProgramId::MeshXdp, node.uplink, node::client_sends(node::TO_REMOTE))
}

fn task_segment(node: &Node) -> Step {
    Step::of(ProgramId::MeshTask, node.overlay_end, node::task_to_remote_task())
}

fn tunnelled_segment(node: &Node) -> Step {
    let segment = node::into_tunnel(node::client_sends(node::TO_LOCAL_BY_OTHER));
    Step::of(ProgramId::MeshVxlan, node.vxlan, segment).tunnelled(node::INGRESS_VNI)
}

impl Walk {
    /// Nothing is remembered of the flow, and nothing will be.
    pub const fn of_unknown_flow() -> Self {
        Self { name: XDP_UNKNOWN, before: at_once, measured: |node| remote_segment(node).of_another_flow() }
    }

    /// Each hook's "nothing" is what its other walks are compared with.
    pub const ALL: &[Self] = &[
        Self {
            name: XDP_NOTHING,
            before: at_once,
            measured: |node| remote_segment(node).given_to(Subject::Nothing(Kind::Xdp)),
        },
        Self {
            name: "XDP: nothing, and nothing restored",
            before: at_once,
            measured: |node| remote_segment(node).given_to(Subject::Bare(Kind::Xdp)),
        },
        Self {
            name: XDP_COUNTING,
            before: at_once,
            measured: |node| remote_segment(node).given_to(Subject::Counting),
        },
        Self { name: XDP_ESTABLISHED, before: remote_connection, measured: remote_segment },
        Self {
            name: XDP_REMEMBERED,
            before: at_once,
            measured: |node| {
                let opens = node::client_opens(node::TO_REMOTE);
                Step::of(ProgramId::MeshXdp, node.uplink, opens).of_another_flow()
            },
        },
        Self { name: XDP_UNKNOWN, before: at_once, measured: |node| remote_segment(node).of_another_flow() },
        Self {
            name: "tc: nothing",
            before: at_once,
            measured: |node| task_segment(node).given_to(Subject::Nothing(Kind::Tc)),
        },
        Self {
            name: "tc uplink: client's segment to another node's backend",
            before: remote_connection,
            measured: |node| {
                Step::of(ProgramId::MeshUplink, node.uplink, node::client_sends(node::TO_REMOTE))
            },
        },
        Self {
            name: "tc uplink: client's segment to this node's backend, translated",
            before: local_connection,
            measured: |node| Step::of(ProgramId::MeshUplink, node.uplink, node::client_sends(node::TO_LOCAL)),
        },
        Self {
            name: "tc task: backend's answer to this node's client, translated back",
            before: local_connection,
            measured: |node| Step::of(ProgramId::MeshTask, node.ingress_end, node::backend_to_client()),
        },
        Self {
            name: "tc task: backend's answer to another node's client, translated back",
            before: tunnelled_connection,
            measured: |node| {
                Step::of(ProgramId::MeshTask, node.ingress_end, node::backend_to_client_of_other())
            },
        },
        Self { name: "tc task: segment to a task on another node", before: at_once, measured: task_segment },
        Self {
            name: "tc VXLAN: nothing",
            before: at_once,
            measured: |node| tunnelled_segment(node).given_to(Subject::Nothing(Kind::Tc)),
        },
        Self {
            name: "tc VXLAN: client's segment to this node's backend, translated",
            before: tunnelled_connection,
            measured: tunnelled_segment,
        },
        Self {
            name: "tc VXLAN: segment from a task on another node",
            before: at_once,
            measured: |node| {
                Step::of(ProgramId::MeshVxlan, node.vxlan, node::remote_task_to_task())
                    .tunnelled(node::OVERLAY_VNI)
            },
        },
        Self {
            name: "tc VXLAN: another node's answer to a client of this one",
            before: at_once,
            measured: |node| {
                Step::of(ProgramId::MeshVxlan, node.vxlan, node::answer_to_client())
                    .tunnelled(node::INGRESS_VNI)
            },
        },
    ];
}
