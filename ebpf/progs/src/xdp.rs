//! XDP on an uplink: clients' packets go into the tunnel before the kernel makes a socket buffer of them.
//!
//! What this can't do it passes on to the tc program beneath: backends of this node, fragments, options, a next hop that
//! nobody has asked for in this second or that lies behind another interface, addresses of other nodes, packets too long to
//! be sent in one piece, frames of drivers that left no room in front, and SCTP: no device makes up for a checksum that a
//! sender on this machine has left to it once the packet has gone through here.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_adjust_head};
use aya_ebpf::programs::XdpContext;
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::table::CONFIG_XDP_REDIRECT;
use ebpf_abi::{DropReason, NodeConfig};
use ebpf_packet::bytes::{Bytes, Truncated};
use ebpf_packet::vxlan::{self, OVERHEAD4, Outer};
use ebpf_packet::{Ethernet, Flow, Version, ethernet, ip};

use crate::account::Account;
use crate::ingress::{self, Chosen};
use crate::verdict::{Outcome, Verdict};
use crate::{maps, tunnel};

struct Frame<'a>(&'a XdpContext);

impl Bytes for Frame<'_> {
    const VARIABLE_OFFSETS: bool = false;

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Result<[u8; N], Truncated> {
        let start = self.0.data() + offset;
        if start + N > self.0.data_end() {
            return Err(Truncated);
        }
        // SAFETY: the bytes end before the frame does.
        Ok(unsafe { *(start as *const [u8; N]) })
    }
}

impl Frame<'_> {
    /// Overwrites the frame's first bytes.
    #[inline(always)]
    fn store<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), DropReason> {
        let start = self.0.data() + offset;
        if start + N > self.0.data_end() {
            return Err(DropReason::Rewrite);
        }
        // SAFETY: the bytes end before the frame does.
        unsafe { *(start as *mut [u8; N]) = *bytes };
        Ok(())
    }
}

#[inline(always)]
pub fn run(account: &Account, context: &XdpContext) -> Outcome {
    let frame = Frame(context);
    let Some(config) = maps::config().filter(|config| config.ingress_vni != 0) else {
        return Ok(Verdict::Pass);
    };
    let Ok(ether_type) = frame.load::<2>(12) else { return Ok(Verdict::Pass) };
    let Some(version) = Version::of(ether_type) else { return Ok(Verdict::Pass) };
    let Ok(flow) = Flow::parse(&frame, version) else { return Ok(Verdict::Pass) };
    if flow.is_sctp() {
        return Ok(Verdict::Pass);
    }
    let Some(ring) = ingress::ring(&flow.tuple) else { return Ok(Verdict::Pass) };
    match ingress::choose(config, &flow, &ring) {
        Some(chosen) if !chosen.endpoint.is_local() => encapsulate(account, config, &frame, (&flow, &chosen)),
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn encapsulate(
    account: &Account,
    config: &NodeConfig,
    frame: &Frame<'_>,
    (flow, chosen): (&Flow, &Chosen),
) -> Outcome {
    let total_len = flow.total_len;
    let len = u32::from(total_len) + OVERHEAD4 as u32;
    let node = chosen.endpoint.vtep;
    if !node.is_v4() {
        return Ok(Verdict::Pass);
    }
    let Some(macs) = tunnel::macs_of_next_hop(account, frame.0.ctx, node, (len, flow.is_syn())) else {
        return Ok(Verdict::Pass);
    };
    let Ok([first, second]) = frame.load::<2>(ip::OFFSET) else { return Ok(Verdict::Pass) };
    let tos = match flow.version {
        Version::V4 => second,
        Version::V6 => first << 4 | second >> 4,
    };
    let outer = Outer {
        source: config.vtep.low(),
        destination: node.low(),
        source_port: vxlan::source_port(chosen.flow_hash),
        destination_port: config.vxlan_port,
        vni: config.ingress_vni,
        inner_tos: tos,
        id: vxlan::id(chosen.flow_hash, account.n_received()),
    };
    let inner = Ethernet {
        destination: chosen.endpoint.mac,
        source: ROUTER_MAC,
        ether_type: flow.version.ether_type(),
    };
    // SAFETY: makes room in front, or says that there is none and leaves the frame as it is.
    if unsafe { bpf_xdp_adjust_head(frame.0.ctx, -(OVERHEAD4 as i32)) } != 0 {
        return Ok(Verdict::Pass);
    }
    frame.store(OVERHEAD4, &inner.to_bytes())?;
    frame.store(0, &outer.to_bytes(macs, total_len + ethernet::LEN as u16))?;
    Ok(send_back(config, frame.0))
}

#[inline(always)]
fn send_back(config: &NodeConfig, context: &XdpContext) -> Verdict {
    if config.flags & CONFIG_XDP_REDIRECT == 0 {
        return Verdict::Forward(xdp_action::XDP_TX.cast_signed());
    }
    // SAFETY: a plain helper call.
    Verdict::Forward(unsafe { bpf_redirect(context.ingress_ifindex() as u32, 0) } as i32)
}
