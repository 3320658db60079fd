//! A packet's real way: a task's socket sends one with a source port of its own, and the programs tell of every packet with
//! that port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use dataplane_model::ProtocolNumber;
use dataplane_model::inspect::{
    FlowSample, HOP, MAX_SAMPLES, TraceEnd, TraceReport, TraceStep, TraceWay, TunnelledPacket,
};
use ebpf_abi::{DropReason, EndpointKey, Ip4, ProgramId, protocol};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, sendto, setsockopt, socket,
    sockopt,
};

use super::hops::{Verdict, no_route, packet_hop, refused, socket_hop, within_sandbox};
use super::walk::leg_to;
use super::{Lookup as _, TaskOrigin, with_names};
use crate::bpf::{TableError, Tables};
use crate::inspect::{InspectError, Watch, Which, open};
use crate::net::NetError;
use crate::net::namespace::Namespace;

/// The programs stop telling after this, should the caller die.
pub const AT_MOST: Duration = Duration::from_secs(10);
/// A packet that no program has seen by then was never sent, or is lost in between.
const PATIENCE: Duration = Duration::from_secs(1);
/// What the same packet meets on the same node comes within microseconds.
const SETTLED: Duration = Duration::from_millis(50);

/// Why no packet was sent.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error("the programs can't be asked")]
    Inspect(#[from] InspectError),
    #[error("the maps can't be read")]
    Table(#[from] TableError),
    #[error("the task's socket")]
    Send(#[from] NetError),
}

/// The way of a connection's first packet, or of an empty datagram, from a task of this node, as far as this node has it. The
/// connection is cut by a reset as soon as it is open.
pub fn trace_live(
    pin_dir: &Path,
    sandbox: &Namespace,
    task: &TaskOrigin,
    destination: SocketAddr,
    protocol: ProtocolNumber,
) -> Result<TraceReport, LiveError> {
    let tables = open(pin_dir)?;
    let vtep = tables.config.get()?.vtep.into();
    let mut watch = Watch::begin(pin_dir, Which::Marked { protocol, port: task.port }, AT_MOST)?;
    let unanswered = unanswered(&tables)?;
    let sent = sandbox.run(|| Sent::send(task.port, destination, protocol))?;
    let mut way = Way { tables: &tables, vtep, unanswered, steps: Vec::new() };
    match sent.failed {
        None => {}
        Some(Errno::ECONNREFUSED) => {
            way.say(socket_hop(protocol, destination.is_ipv4(), None));
            return Ok(way.end(refused(protocol, destination.is_ipv4())));
        }
        Some(errno) => {
            let says = format!("the system call fails: {}", errno.desc());
            way.note("socket", says);
            return Ok(way.end(TraceEnd::Host));
        }
    }
    let translated = sent.translated(&tables)?;
    if let Some(backend) = translated {
        way.say(socket_hop(protocol, destination.is_ipv4(), Some(backend)));
    }
    let destination = translated.unwrap_or(destination);
    let end = if task.network_of(destination.ip().into(), &tables)?.is_some() {
        within_sandbox(destination)
    } else {
        let samples = firsts(&mut watch, || Ok(self::unanswered(&tables)? > unanswered))?;
        way.of_task(task, (destination, protocol), &samples)?
    };
    Ok(with_names(way.end(end)))
}

/// The rest of the way of a packet that comes by a tunnel, which `watch` waits for; `None` if it does not come.
pub fn trace_marked(
    pin_dir: &Path,
    watch: &mut Watch,
    packet: &TunnelledPacket,
) -> Result<Option<TraceReport>, LiveError> {
    let tables = open(pin_dir)?;
    let vtep = tables.config.get()?.vtep.into();
    let is_it = |sample: &FlowSample| sample.tunnel.is_some_and(|tunnel| tunnel.from == packet.from);
    let samples: Vec<FlowSample> = firsts(watch, || Ok(false))?.into_iter().filter(is_it).collect();
    if samples.is_empty() {
        return Ok(None);
    }
    let mut way = Way { tables: &tables, vtep, unanswered: 0, steps: Vec::new() };
    let end = way.arrived(&samples, packet)?;
    Ok(Some(with_names(way.end(end))))
}

/// What each program says of the packet when it sees it first: a lost one is sent again. `is_in_vain` tells that none will come.
fn firsts(
    watch: &mut Watch,
    is_in_vain: impl Fn() -> Result<bool, TableError>,
) -> Result<Vec<FlowSample>, LiveError> {
    let is_first_packet = |sample: &FlowSample| {
        let packet = sample.before.innermost();
        packet.protocol != "tcp" || packet.flags == "S"
    };
    let is_there = |samples: &[FlowSample]| samples.iter().any(is_first_packet);
    let mut samples = watch.collect(SETTLED, MAX_SAMPLES, is_there)?.samples;
    if !is_there(&samples) && !is_in_vain()? {
        samples.extend(watch.collect(PATIENCE, MAX_SAMPLES, is_there)?.samples);
    }
    samples.extend(watch.collect(SETTLED, MAX_SAMPLES, |_| false)?.samples);
    let mut firsts: Vec<FlowSample> = Vec::new();
    for sample in samples.into_iter().filter(is_first_packet) {
        if firsts.iter().all(|known| known.program != sample.program) {
            firsts.push(sample);
        }
    }
    Ok(firsts)
}

/// A socket that has sent, or was not let.
struct Sent {
    socket: OwnedFd,
    /// What the system call failed with.
    failed: Option<Errno>,
}

impl Sent {
    /// From the calling thread's namespace.
    fn send(port: u16, destination: SocketAddr, protocol: ProtocolNumber) -> Result<Self, NetError> {
        let of = |what: &'static str| move |errno: Errno| NetError::io(what, errno.into());
        let is_tcp = protocol == protocol::TCP;
        let kind = if is_tcp { SockType::Stream } else { SockType::Datagram };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let family = if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, kind, flags, None).map_err(of("open a socket"))?;
        if is_tcp {
            let reset = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&fd, sockopt::Linger, &reset).map_err(of("have a socket reset its connection"))?;
        }
        let any: IpAddr =
            if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))
            .map_err(of("take the source port (--port)"))?;
        let to = SockaddrStorage::from(destination);
        let sent = if is_tcp {
            connect(fd.as_raw_fd(), &to)
        } else {
            sendto(fd.as_raw_fd(), &[], &to, MsgFlags::empty()).map(drop)
        };
        match sent {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(Self { socket: fd, failed: None }),
            Err(errno @ (Errno::ECONNREFUSED | Errno::ENETUNREACH)) => {
                Ok(Self { socket: fd, failed: Some(errno) })
            }
            Err(errno) => Err(of("send")(errno)),
        }
    }

    /// Where the socket programs sent it instead.
    fn translated(&self, tables: &Tables) -> Result<Option<SocketAddr>, LiveError> {
        let cookie =
            cookie(&self.socket).map_err(|error| NetError::io("ask for a socket's cookie", error))?;
        let rows = tables.socket_nat.rows()?;
        let key = rows.keys().find(|key| key.socket_cookie == cookie);
        Ok(key.map(|key| SocketAddr::new(IpAddr::from(key.backend), key.port.get())))
    }
}

fn cookie(socket: &OwnedFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: the pointers are to locals that live through the call, and `size` says how large the first one is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// A way while it is put together.
struct Way<'a> {
    tables: &'a Tables,
    vtep: IpAddr,
    /// Tasks' questions for MACs that nobody had answered before.
    unanswered: u64,
    steps: Vec<TraceStep>,
}

impl Way<'_> {
    fn say(&mut self, says: String) {
        self.note(HOP, says);
    }

    fn note(&mut self, at: &str, says: String) {
        self.steps.push(TraceStep { node: self.vtep, at: at.to_owned(), says });
    }

    fn end(self, end: TraceEnd) -> TraceReport {
        TraceReport { ways: vec![TraceWay { chance: None, steps: self.steps, end }] }
    }

    fn hop(&mut self, sample: &FlowSample) -> Option<TraceEnd> {
        let reason = sample.reason.clone().unwrap_or_default();
        let verdict = match sample.verdict.as_str() {
            "passed" => Verdict::Passed,
            "forwarded" => Verdict::Forwarded,
            _ => Verdict::Dropped(&reason),
        };
        self.say(packet_hop(&sample.program, verdict));
        matches!(verdict, Verdict::Dropped(_))
            .then(|| TraceEnd::Dropped { program: sample.program.clone(), reason: reason.clone() })
    }

    /// By the task's leg, or by its way out and the node's own stack.
    fn of_task(
        &mut self,
        task: &TaskOrigin,
        (destination, protocol): (SocketAddr, ProtocolNumber),
        samples: &[FlowSample],
    ) -> Result<TraceEnd, LiveError> {
        let of = |program: ProgramId| samples.iter().find(|sample| sample.program == program.label());
        let by_leg = of(ProgramId::MeshTask);
        if let Some(sample) = by_leg
            && let Some(end) = self.by_leg(task, protocol, sample)?
        {
            return Ok(end);
        }
        let Some(sample) = of(ProgramId::MeshVxlanOut) else {
            return if by_leg.is_some() { Ok(TraceEnd::Host) } else { self.not_seen(task, destination) };
        };
        if let Some(dropped) = self.hop(sample) {
            return Ok(dropped);
        }
        let vni = self.tables.config.get()?.ingress_vni;
        self.sent_to(vni, protocol, sample)
    }

    /// `None` for what goes on in the node's stack.
    fn by_leg(
        &mut self,
        task: &TaskOrigin,
        protocol: ProtocolNumber,
        sample: &FlowSample,
    ) -> Result<Option<TraceEnd>, LiveError> {
        if let Some(dropped) = self.hop(sample) {
            return Ok(Some(dropped));
        }
        // The packet has become the answer.
        if sample.after.protocol == "icmpv6" {
            return Ok(Some(no_route()));
        }
        if sample.verdict != "forwarded" {
            return Ok(None);
        }
        // What the program sends into a tunnel goes through the VXLAN device as it is.
        let source: Option<SocketAddr> = sample.before.source.parse().ok();
        let vni = match source {
            Some(source) => task.network_of(source.ip().into(), self.tables)?,
            None => None,
        };
        Ok(Some(self.sent_to(vni.unwrap_or(0), protocol, sample)?))
    }

    /// A task that finds no neighbour sends nothing but questions, which have no ports to be known by. Its way out has no
    /// program, unless it is in the routing mesh's network.
    fn not_seen(&mut self, task: &TaskOrigin, destination: SocketAddr) -> Result<TraceEnd, LiveError> {
        let is_by_leg = leg_to(self.tables, task, destination.ip().into())?.is_some();
        if is_by_leg && unanswered(self.tables)? > self.unanswered {
            let (program, reason) = (ProgramId::MeshTask.label(), DropReason::NeighbourUnanswered.label());
            self.say(packet_hop(program, Verdict::Dropped(reason)));
            return Ok(TraceEnd::Dropped { program: program.to_owned(), reason: reason.to_owned() });
        }
        self.note("sandbox", "no program has seen the packet".to_owned());
        Ok(TraceEnd::Host)
    }

    /// Where a packet goes that a program sends to an endpoint.
    fn sent_to(
        &self,
        vni: u32,
        protocol: ProtocolNumber,
        sample: &FlowSample,
    ) -> Result<TraceEnd, LiveError> {
        // A task's first packet changes in its MACs alone, and in what is put in front of it.
        let ends = (sample.before.source.parse(), sample.before.destination.parse());
        let (Ok(source), Ok(destination)) = ends else { return Ok(TraceEnd::Host) };
        let destination: SocketAddr = destination;
        let Some(address) = self.tables.name(vni, destination.ip().into())? else {
            return Ok(TraceEnd::Host);
        };
        let endpoint = self.tables.endpoints.get(&EndpointKey { vni, address })?;
        Ok(match endpoint {
            None => TraceEnd::Host,
            Some(endpoint) if endpoint.is_local() => in_sandbox(destination, endpoint.ifindex),
            Some(endpoint) => TraceEnd::Tunnel(TunnelledPacket {
                from: self.vtep,
                to: endpoint.vtep.into(),
                vni,
                endpoint: address.into(),
                source,
                destination,
                protocol,
            }),
        })
    }

    /// Taken out of the tunnel at the uplink, or by the kernel's device.
    fn arrived(&mut self, samples: &[FlowSample], packet: &TunnelledPacket) -> Result<TraceEnd, LiveError> {
        let of = |program: ProgramId| samples.iter().find(|sample| sample.program == program.label());
        let mut last = None;
        for sample in [of(ProgramId::MeshUplink), of(ProgramId::MeshVxlan)].into_iter().flatten() {
            if let Some(dropped) = self.hop(sample) {
                return Ok(dropped);
            }
            last = Some(sample);
        }
        let key = EndpointKey { vni: packet.vni, address: Ip4::from(packet.endpoint) };
        let endpoint = self.tables.endpoints.get(&key)?.filter(ebpf_abi::Endpoint::is_local);
        let destination = last.and_then(|sample| sample.after.destination.parse().ok());
        Ok(match (endpoint, destination) {
            (Some(endpoint), Some(destination)) => in_sandbox(destination, endpoint.ifindex),
            _ => TraceEnd::Host,
        })
    }
}

fn unanswered(tables: &Tables) -> Result<u64, TableError> {
    let row = tables.counters.program(ProgramId::MeshTask)?;
    Ok(row.drops[DropReason::NeighbourUnanswered as usize])
}

fn in_sandbox(destination: SocketAddr, ifindex: u32) -> TraceEnd {
    TraceEnd::Sandbox { destination, interface: ifindex.to_string(), task: String::new() }
}
