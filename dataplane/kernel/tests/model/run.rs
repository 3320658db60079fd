//! One run: a seed's tables and steps, given to the model and to the programs, and what differs.

use std::collections::BTreeMap;

use ebpf_abi::limits::{MAX_DROP_REASONS, MAX_NEW_CACHED_FLOWS, ROUTER_MAC};
use ebpf_abi::{CounterRow, Ip, Ip4, ProgramId, protocol};

use crate::frame::{IPV4, IPV6, Link, at, checksums_hold};
use crate::generate::dice::Dice;
use crate::generate::{self, world};
use crate::kernel::{Machine, Ran, Slate};
use crate::network::{Family, Network};
use crate::packet::{Packet, SocketCall, Step, TUNNEL, hex};
use crate::step::{FLOW_HASH, Outcome, Verdict, Way, socket_step, step};
use crate::tables::{Tables, Wanted};

/// Each costs some tenths of a second: a change of rings waits for the programs that run.
const MAX_REPLAYS: usize = 100;

/// What is in front of a tunnelled frame, bytes.
const TUNNEL_HEADERS: usize = 50;

/// Something that differs.
#[derive(Debug)]
pub struct Mismatch {
    /// Position of the step.
    pub position: usize,
    pub what: String,
}

/// A program, and what became of a packet there.
pub type End = (ProgramId, String);

/// The programs, and the model's tables beside theirs.
pub struct Bench {
    pub machine: Machine,
    pub model: Tables,
    /// What the machine's tables were last filled with, and has changed since.
    filled: Wanted,
    /// How often each program came to which end.
    pub ends: BTreeMap<End, u64>,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            machine: Machine::load(),
            model: Tables::default(),
            filled: Wanted::default(),
            ends: BTreeMap::new(),
        }
    }

    /// Begins with these tables, no flows, and a gate that lets a few more pass in the first second.
    pub fn begin(&mut self, wanted: Wanted) {
        self.machine.fill(&self.filled, &wanted);
        self.model = Tables::new(wanted.clone(), 1);
        let (tick, n_new) = (wanted.tick, MAX_NEW_CACHED_FLOWS - 5);
        (self.machine.gate().tick, self.machine.gate().n_new) = (tick, n_new);
        (self.model.written.gate.tick, self.model.written.gate.n_new) = (tick, n_new);
        self.filled = wanted;
        *self.machine.slate() = Slate { random: 1, hash: FLOW_HASH, ..Slate::default() };
    }

    /// A run of `n_steps`, which are in `steps` then.
    pub fn run(&mut self, seed: u64, n_steps: usize, steps: &mut Vec<Step>) -> Result<(), Mismatch> {
        let mut dice = Dice::new(seed);
        self.begin(world::wanted(&mut dice));
        steps.clear();
        for position in 0..n_steps {
            steps.push(generate::next(&mut dice, &self.model));
            let step = &steps[position];
            self.take(step).map_err(|what| Mismatch { position, what })?;
        }
        self.compare_rows().map_err(|what| Mismatch { position: n_steps, what })
    }

    /// The same run with other steps.
    pub fn replay(&mut self, seed: u64, steps: &[Step]) -> Result<(), Mismatch> {
        self.begin(world::wanted(&mut Dice::new(seed)));
        for (position, step) in steps.iter().enumerate() {
            self.take(step).map_err(|what| Mismatch { position, what })?;
        }
        self.compare_rows().map_err(|what| Mismatch { position: steps.len(), what })
    }

    /// Leaves out what a mismatch doesn't need: halves first, then less and less. `None` if the steps don't fail again.
    pub fn shrink(&mut self, seed: u64, mut steps: Vec<Step>) -> Option<(Vec<Step>, Mismatch)> {
        let mut mismatch = self.replay(seed, &steps).err()?;
        steps.truncate(mismatch.position + 1);
        let mut n_replays = 0;
        let mut chunk = steps.len() / 2;
        while chunk > 0 {
            let mut start = 0;
            while start < steps.len() && n_replays < MAX_REPLAYS {
                n_replays += 1;
                let fewer = [&steps[..start], steps.get(start + chunk..).unwrap_or_default()].concat();
                match self.replay(seed, &fewer) {
                    Ok(()) => start += chunk,
                    Err(still) => (steps, mismatch) = (fewer, still),
                }
            }
            chunk /= 2;
        }
        Some((steps, mismatch))
    }

    /// One step on both sides.
    pub fn take(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Packet(packet) => self.packet(packet),
            Step::Socket(call) => self.socket(call),
            Step::Change(change) => {
                self.machine.apply(change);
                self.model.apply(change);
                self.filled.clone_from(&self.model.wanted);
                Ok(())
            }
        }
    }

    fn packet(&mut self, packet: &Packet) -> Result<(), String> {
        let expected = step(&mut self.model, packet);
        let slate = self.machine.slate();
        let (vni, remote) = packet.tunnel.unwrap_or_default();
        (slate.has_tunnel, slate.tunnel_vni) = (packet.tunnel.is_some().into(), vni);
        slate.tunnel_remote = remote.low().to_u32();
        let hop = packet.next_hop;
        (slate.fib_result, slate.fib_ifindex) = (hop.result, hop.ifindex);
        (slate.fib_gateway, slate.fib_mtu) = (hop.gateway.low().to_be_u32(), hop.mtu.into());
        slate.fib_macs[..6].copy_from_slice(&hop.source.0);
        slate.fib_macs[6..].copy_from_slice(&hop.destination.0);
        (slate.listens6, slate.listens4) = (packet.listens.v6.into(), packet.listens.v4.into());
        let ran = self.machine.run(packet);
        let by_vip = self.by_vip(packet, &expected);
        let network = Link::of(&packet.bytes).and_then(|link| Family::of(link.kind));
        let was_icmp = network
            .and_then(|family| Network::of(&packet.bytes, family))
            .is_some_and(|ip| ip.protocol == ip.family.icmp_protocol());
        self.count(packet.program, (&expected, by_vip), (network == Some(Family::V6), was_icmp));
        let is_xdp = packet.program == ProgramId::MeshXdp;
        agree(&expected, &ran, if is_xdp { xdp_code(&expected) } else { tc_code(&expected) })?;
        if ran.slate.random != self.model.random {
            return Err(format!("random numbers: {} drawn, {}", ran.slate.random, self.model.random));
        }
        let came_through_tunnel = ran.bytes.len() + TUNNEL_HEADERS == packet.bytes.len();
        let held = checksums_hold(&packet.bytes)
            && (!came_through_tunnel || checksums_hold(&packet.bytes[TUNNEL_HEADERS..]));
        if !matches!(expected.verdict, Verdict::Drop(_)) && held {
            return if checksums_hold(&ran.bytes) { Ok(()) } else { Err("a checksum is wrong".into()) };
        }
        Ok(())
    }

    /// What is to be said of a packet that a task sent to a virtual address, or that gets to one as from there.
    fn by_vip(&self, packet: &Packet, outcome: &Outcome) -> &'static str {
        let network =
            |frame: &[u8]| Link::of(frame).and_then(|link| Network::of(frame, Family::of(link.kind)?));
        let is_vip = |address: Ip| {
            let vips = &self.model.wanted.vips;
            vips.keys().any(|key| self.model.name(key.vni, address) == Some(key.address))
        };
        let asks = network(&packet.bytes).is_some_and(|ip| is_vip(ip.destination));
        let answers = network(&outcome.bytes).is_some_and(|ip| is_vip(ip.source));
        match outcome.verdict {
            Verdict::Forward(Way::Sandbox(to)) if to == packet.ifindex && asks => " for its virtual address",
            Verdict::Forward(Way::Sandbox(to)) if to == packet.ifindex && answers => {
                " from its virtual address"
            }
            Verdict::Forward(Way::Sandbox(_)) if answers => " from a virtual address",
            Verdict::Forward(Way::Out(TUNNEL) | Way::Neighbour(..) | Way::Sandbox(_)) if asks => {
                " for a virtual address"
            }
            Verdict::Forward(Way::Out(_)) if asks && answers && tells_length(&outcome.bytes) => {
                " for a virtual address"
            }
            Verdict::Forward(Way::Out(_)) if asks && answers && is_unreachable(&outcome.bytes) => {
                " as nobody serves it"
            }
            _ => "",
        }
    }

    fn count(
        &mut self,
        program: ProgramId,
        (outcome, by_vip): (&Outcome, &str),
        (is_v6, was_icmp): (bool, bool),
    ) {
        let end = match outcome.verdict {
            Verdict::Forward(_) if tells_length(&outcome.bytes) && !was_icmp => "told what fits".into(),
            Verdict::Forward(Way::Out(TUNNEL)) if outcome.bytes[6..12] != ROUTER_MAC.0 => {
                "asked elsewhere".into()
            }
            Verdict::Forward(Way::Out(TUNNEL)) => "tunnelled".into(),
            Verdict::Forward(Way::Neighbour(..)) => "tunnelled by own headers".into(),
            Verdict::Forward(Way::Out(_)) => "sent out".into(),
            Verdict::Forward(Way::Routed(_)) if self.is_of_other_node(&outcome.bytes) => {
                "straight to a client".into()
            }
            // Whichever interface is the uplink.
            Verdict::Forward(Way::Routed(_)) => "to a client".into(),
            Verdict::Forward(Way::Sandbox(_)) => "to a task".into(),
            Verdict::Drop(reason) => reason.label().to_owned(),
            other => format!("{other:?}"),
        };
        let end = if is_v6 { format!("{end}{by_vip}, IPv6") } else { end + by_vip };
        let end = match translated(program, outcome, is_v6) {
            Some(as_what) => format!("{end}, {as_what}"),
            None => end,
        };
        *self.ends.entry((program, end)).or_default() += 1;
    }

    /// The source is an address of another node.
    fn is_of_other_node(&self, frame: &[u8]) -> bool {
        let ip = Link::of(frame).and_then(|link| Network::of(frame, Family::of(link.kind)?));
        ip.is_some_and(|ip| !self.model.is_own(ip.source))
    }

    fn socket(&mut self, call: &SocketCall) -> Result<(), String> {
        let expected = socket_step(&mut self.model, call);
        let slate = self.machine.slate();
        (slate.netns_cookie, slate.socket_cookie) = (call.netns_cookie, call.socket_cookie);
        let ran = self.machine.run_socket(call);
        self.count(call.program, (&expected, ""), (call.is_of_v6_alone(), false));
        let (code, error) = match expected.verdict {
            Verdict::Drop(_) => (REFUSE, Some(ECONNREFUSED)),
            _ => (PROCEED, None),
        };
        let retval = ran.slate.set_retval;
        let told = (retval.n_calls > 0).then_some(retval.arguments[0] & u64::from(u32::MAX));
        if told != error {
            return Err(format!("error code: {told:?}"));
        }
        agree(&expected, &ran, code)
    }

    /// What the programs have written is what the model has.
    pub fn compare_rows(&mut self) -> Result<(), String> {
        let (kernel, model) = (self.machine.take_written(), &self.model.written);
        if &kernel == model {
            return Ok(());
        }
        Err(format!("rows differ\n kernel {kernel:#?}\n model {model:#?}"))
    }
}

/// What a packet became that went to a task, or came from one, in the other family.
fn translated(program: ProgramId, outcome: &Outcome, was_v6: bool) -> Option<&'static str> {
    let (kind, bytes) = (at::<2>(&outcome.bytes, 12)?, &outcome.bytes);
    let is_for_task = matches!(outcome.verdict, Verdict::Forward(Way::Sandbox(_)));
    if is_for_task && was_v6 && kind == IPV4 {
        return Some(if bytes[23] == protocol::ICMP { "an error of IPv4" } else { "as IPv4" });
    }
    if program == ProgramId::MeshTask && !was_v6 && kind == IPV6 {
        return Some(if bytes[20] == protocol::ICMP6 { "an error of IPv6" } else { "as IPv6" });
    }
    None
}

/// An ICMP error: "fragmentation needed" or "packet too big".
fn tells_length(frame: &[u8]) -> bool {
    let Some(family) = at(frame, 12).and_then(Family::of) else { return false };
    let message =
        Network::of(frame, family).filter(Network::is_plain_icmp).and_then(|_| at(frame, family.icmp()));
    message == Some(if family == Family::V4 { [3, 4] } else { [2, 0] })
}

/// An ICMP error: "destination unreachable".
fn is_unreachable(frame: &[u8]) -> bool {
    match at(frame, 12).and_then(Family::of) {
        Some(family @ Family::V4) => at(frame, family.icmp()) == Some([3]),
        Some(family @ Family::V6) => at(frame, family.icmp()) == Some([1]),
        None => false,
    }
}

/// Results of a socket hook, and the error code of a call that is refused (32 bits).
const PROCEED: u32 = 1;
const REFUSE: u32 = 0;
const ECONNREFUSED: u64 = (-libc::ECONNREFUSED).cast_unsigned() as u64;
pub const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

fn tc_code(expected: &Outcome) -> u32 {
    match expected.verdict {
        Verdict::Pass | Verdict::Ignore => u32::MAX,
        Verdict::Forward(_) => TC_ACT_REDIRECT,
        Verdict::Drop(_) => TC_ACT_SHOT,
    }
}

fn xdp_code(expected: &Outcome) -> u32 {
    match expected.verdict {
        Verdict::Pass | Verdict::Ignore => XDP_PASS,
        Verdict::Forward(Way::Back { redirected: true }) => XDP_REDIRECT,
        Verdict::Forward(_) => XDP_TX,
        Verdict::Drop(_) => XDP_DROP,
    }
}

/// Verdict, way, tunnel, bytes and counters.
fn agree(expected: &Outcome, ran: &Ran, code: u32) -> Result<(), String> {
    let counted = counted(expected);
    let slate = &ran.slate;
    let tunnel = &slate.set_tunnel;
    let given = (tunnel.n_calls > 0).then(|| {
        let [vni, remote, _] = tunnel.arguments.map(|argument| u32::try_from(argument).unwrap_or(u32::MAX));
        (vni, Ip4::from_u32(remote).into())
    });
    let is_dropped = matches!(expected.verdict, Verdict::Drop(_));
    let differs = if ran.code != code {
        "verdict"
    } else if ran.counted != counted {
        "counters"
    } else if !is_dropped && ran.bytes != expected.bytes {
        "bytes"
    } else if !is_dropped && given != expected.tunnel {
        "tunnel"
    } else if !is_dropped && way(slate) != way_expected(expected) {
        "way"
    } else if !is_dropped && (slate.change_type.n_calls > 0) != expected.for_host {
        "packet type"
    } else {
        return Ok(());
    };
    let (kernel, model) = (hex(&ran.bytes), hex(&expected.bytes));
    let drops: Vec<String> = drops(&ran.counted);
    Err(format!(
        "{differs} differs\n kernel: code {}, {drops:?}, tunnel {given:?}, way {:?}\n  {kernel}\n model: {:?}, tunnel {:?}\n  {model}",
        ran.code.cast_signed(),
        way(slate),
        expected.verdict,
        expected.tunnel,
    ))
}

fn drops(row: &CounterRow) -> Vec<String> {
    let reasons = ebpf_abi::DropReason::ALL.iter().zip(row.drops);
    reasons.filter(|(_, count)| *count > 0).map(|(reason, _)| reason.label().to_owned()).collect()
}

/// Each packet is counted once in, and once out.
fn counted(expected: &Outcome) -> CounterRow {
    let mut row = CounterRow { received: 1, drops: [0; MAX_DROP_REASONS], ..CounterRow::default() };
    match expected.verdict {
        Verdict::Pass => row.passed = 1,
        Verdict::Forward(_) => row.forwarded = 1,
        Verdict::Drop(reason) => row.drops[reason.number() as usize] = 1,
        Verdict::Ignore => row.received = 0,
    }
    row
}

/// The redirections that a run made: helper, interface, flags, neighbour.
fn way(slate: &Slate) -> Vec<(&'static str, u64, u64, u64)> {
    [
        ("redirect", slate.redirect),
        ("redirect_peer", slate.redirect_peer),
        ("redirect_neigh", slate.redirect_neigh),
    ]
    .into_iter()
    .filter(|(_, note)| note.n_calls > 0)
    .map(|(helper, note)| (helper, note.arguments[0], note.arguments[1], note.arguments[2]))
    .collect()
}

fn way_expected(expected: &Outcome) -> Vec<(&'static str, u64, u64, u64)> {
    const INGRESS: u64 = 1;
    let Verdict::Forward(way) = expected.verdict else { return Vec::new() };
    vec![match way {
        Way::Out(ifindex) => ("redirect", ifindex.into(), 0, 0),
        Way::In(ifindex) => ("redirect", ifindex.into(), INGRESS, 0),
        Way::Sandbox(ifindex) => ("redirect_peer", ifindex.into(), 0, 0),
        Way::Routed(ifindex) => ("redirect_neigh", ifindex.into(), 0, 0),
        Way::Neighbour(ifindex, gateway) => ("redirect_neigh", ifindex.into(), 0, gateway.to_be_u32().into()),
        Way::Back { redirected: true } => ("redirect", crate::packet::XDP_UPLINK.into(), 0, 0),
        Way::Back { redirected: false } | Way::Translated => return Vec::new(),
    }]
}
