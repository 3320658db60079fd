//! Single packets, as the programs tell of them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use dataplane_model::ProtocolNumber;
use dataplane_model::inspect::{FlowSample, FlowSamples, SampledPacket, SampledTunnel};
use dataplane_model::kernel_state::protocol_name;
use ebpf_abi::sample::{N_HEAD_BYTES, STAGE_DROPPED, STAGE_FORWARDED, STAGE_PASSED, STAGE_RECEIVED};
use ebpf_abi::{DropReason, FlowEvent, Port, ProgramId, Sampling, protocol};

use super::{InspectError, name_of, open};
use crate::bpf::{Events, PinDir};

/// Of which packets the programs are to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// One of so many, by chance, at each program.
    OneOf(u32),
    /// Every one with this source port.
    Marked { protocol: ProtocolNumber, port: u16 },
}

/// From a tunnel's UDP header to the packet in it, and to the VNI (RFC 7348 section 5).
const INNER: usize = 16;
const VNI: usize = 12;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// The programs tell, until this is dropped or its time is over. There must be one at a time on a node.
pub struct Watch {
    events: Events,
    which: Which,
    /// UDP port of the tunnels.
    tunnel_port: u16,
    n_lost_before: u64,
}

impl Watch {
    /// From now on; for `at_most`, should the caller die.
    pub fn begin(pin_dir: &Path, which: Which, at_most: Duration) -> Result<Self, InspectError> {
        let tunnel_port = open(pin_dir)?.config.get()?.vxlan_port.get();
        let mut events = Events::open(&PinDir::new(pin_dir))?;
        let n_lost_before = events.n_lost()?;
        let mut sampling =
            Sampling { is_on: 1, until_ns: now_ns().saturating_add(ns(at_most)), ..Sampling::default() };
        match which {
            Which::OneOf(every) => sampling.every = every.max(1),
            Which::Marked { protocol, port } => {
                (sampling.marked_protocol, sampling.marked_port) = (protocol, Port::new(port));
            }
        }
        events.switch(&sampling)?;
        Ok(Self { events, which, tunnel_port, n_lost_before })
    }

    /// What is told within `window`, or until it `is_enough`; at most `limit` packets.
    pub fn collect(
        &mut self,
        window: Duration,
        limit: usize,
        is_enough: impl Fn(&[FlowSample]) -> bool,
    ) -> Result<FlowSamples, InspectError> {
        let every = if let Which::OneOf(every) = self.which { every } else { 0 };
        let mut report = FlowSamples { every, ..FlowSamples::default() };
        let mut received: BTreeMap<(u8, u32), FlowEvent> = BTreeMap::new();
        let began = Instant::now();
        loop {
            while let Some(event) = self.events.take() {
                let key = (event.program, event.packet);
                if event.stage == STAGE_RECEIVED {
                    received.insert(key, event);
                } else if let Some(before) = received.remove(&key) {
                    add(&mut report, limit, sample(&before, &event, self.tunnel_port));
                }
            }
            let left = window.saturating_sub(began.elapsed());
            if left.is_zero() || is_enough(&report.samples) {
                break;
            }
            self.events.wait(left);
        }
        report.n_lost = self.events.n_lost()?.saturating_sub(self.n_lost_before);
        Ok(report)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // If it can't be switched off now, it ends by its time.
        let _ = self.events.switch(&Sampling::default());
    }
}

fn add(report: &mut FlowSamples, limit: usize, sample: FlowSample) {
    if report.samples.len() < limit {
        report.samples.push(sample);
    } else {
        report.n_left_off += 1;
    }
}

/// As the programs' clock has it.
fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let part = |part: libc::c_long| u64::try_from(part).unwrap_or(0);
    part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec))
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn sample(before: &FlowEvent, after: &FlowEvent, tunnel_port: u16) -> FlowSample {
    let reason = DropReason::ALL.get(usize::from(after.reason)).map(|reason| reason.label().to_owned());
    let head_before = head(before);
    let tunnel = if before.remote.is_unspecified() {
        tunnel_of(&head_before, tunnel_port).map(|(tunnel, _)| tunnel)
    } else {
        Some(SampledTunnel { from: before.remote.into(), vni: before.vni })
    };
    FlowSample {
        at_ns: before.at_ns,
        program: ProgramId::ALL
            .get(usize::from(after.program))
            .map_or("unknown", |program| program.label())
            .to_owned(),
        interface: name_of(before.ifindex),
        verdict: verdict(after.stage).to_owned(),
        reason: reason.filter(|_| after.stage == STAGE_DROPPED),
        len: before.len,
        tunnel,
        before: outermost(&head_before, tunnel_port),
        after: outermost(&head(after), tunnel_port),
    }
}

const fn verdict(stage: u8) -> &'static str {
    match stage {
        STAGE_PASSED => "passed",
        STAGE_FORWARDED => "forwarded",
        STAGE_DROPPED => "dropped",
        _ => "unknown",
    }
}

fn head(event: &FlowEvent) -> [u8; N_HEAD_BYTES] {
    let mut head = [0; N_HEAD_BYTES];
    head.copy_from_slice(event.head.as_flattened());
    head
}

/// The tunnel's headers that a frame begins with, IP without options or extensions and UDP to the tunnels' port; and where the
/// packet in it begins.
fn tunnel_of(head: &[u8; N_HEAD_BYTES], tunnel_port: u16) -> Option<(SampledTunnel, usize)> {
    let (protocol, udp, from) = match (head[12..14].try_into().ok()?, head[14] >> 4) {
        (IPV4, 4) if head[14] == 0x45 => {
            (head[23], 34, Ipv4Addr::new(head[26], head[27], head[28], head[29]).into())
        }
        (IPV6, 6) => {
            let from: [u8; 16] = head[22..38].try_into().ok()?;
            (head[20], 54, Ipv6Addr::from(from).into())
        }
        _ => return None,
    };
    let is_one = protocol == protocol::UDP && [head[udp + 2], head[udp + 3]] == tunnel_port.to_be_bytes();
    let vni = u32::from_be_bytes([0, head[udp + VNI], head[udp + VNI + 1], head[udp + VNI + 2]]);
    is_one.then_some((SampledTunnel { from, vni }, udp + INNER))
}

fn outermost(head: &[u8; N_HEAD_BYTES], tunnel_port: u16) -> SampledPacket {
    let mut packet = packet(head);
    if let Some((_, start)) = tunnel_of(head, tunnel_port) {
        let mut inner = [0; N_HEAD_BYTES];
        inner[..N_HEAD_BYTES - start].copy_from_slice(&head[start..]);
        packet.inner = Some(Box::new(self::packet(&inner)));
    }
    packet
}

/// Headers of a frame of which these are the first bytes.
fn packet(head: &[u8; N_HEAD_BYTES]) -> SampledPacket {
    let mac: Vec<String> = head[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut packet = SampledPacket { destination_mac: mac.join(":"), ..SampledPacket::default() };
    match [head[12], head[13]] {
        [0x08, 0x00] => {
            let bytes = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
            let (source, destination) = (Ipv4Addr::from(bytes(26)), Ipv4Addr::from(bytes(30)));
            let transport = 14 + 4 * usize::from(head[14] & 0xf);
            let is_later_fragment = (head[20] & 0x1f, head[21]) != (0, 0);
            transport_of(&mut packet, head, head[23], transport, is_later_fragment);
            add_addresses(&mut packet, &source.to_string(), &destination.to_string());
        }
        [0x86, 0xdd] => {
            let address = |at: usize| Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| head[at + i]));
            transport_of(&mut packet, head, head[20], 54, false);
            add_addresses(&mut packet, &format!("[{}]", address(22)), &format!("[{}]", address(38)));
        }
        [0x08, 0x06] => "arp".clone_into(&mut packet.protocol),
        [a, b] => packet.protocol = format!("0x{a:02x}{b:02x}"),
    }
    packet
}

/// Ports go where the addresses will.
fn transport_of(
    packet: &mut SampledPacket,
    head: &[u8; N_HEAD_BYTES],
    number: u8,
    at: usize,
    is_later: bool,
) {
    packet.protocol = match number {
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMP6 => "icmpv6".to_owned(),
        number => protocol_name(number),
    };
    let has_ports = [protocol::TCP, protocol::UDP, protocol::SCTP].contains(&number);
    let Some(bytes) = head.get(at..at + 14).filter(|_| has_ports && !is_later) else { return };
    packet.source = format!(":{}", u16::from_be_bytes([bytes[0], bytes[1]]));
    packet.destination = format!(":{}", u16::from_be_bytes([bytes[2], bytes[3]]));
    if number == protocol::TCP {
        let flags = [(1, 'F'), (2, 'S'), (4, 'R'), (8, 'P'), (16, 'A')];
        packet.flags = flags.iter().filter(|(bit, _)| bytes[13] & bit != 0).map(|(_, name)| name).collect();
    }
}

fn add_addresses(packet: &mut SampledPacket, source: &str, destination: &str) {
    packet.source.insert_str(0, source);
    packet.destination.insert_str(0, destination);
}
