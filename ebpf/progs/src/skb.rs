//! A socket buffer, with the kernel's helpers as `Result`s.

mod tunnel_key;

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_CSUM_LEVEL_DEC, BPF_CSUM_LEVEL_INC, BPF_CSUM_LEVEL_QUERY,
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS,
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode, bpf_redir_neigh,
};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_csum_level, bpf_get_hash_recalc, bpf_l3_csum_replace, bpf_l4_csum_replace,
    bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_proto,
    bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use ebpf_abi::{DropReason, Ip, Ip4, MacAddr, Port, protocol};
use ebpf_packet::bytes::{Bytes, Truncated};
use ebpf_packet::ip::Part;
use ebpf_packet::{Ethernet, Flow, Version, ethernet, flow, icmp, ip, ipv4, ipv6, sctp, vxlan};

use crate::fib;
use crate::verdict::{Outcome, Verdict};

pub use tunnel_key::{Tunnel, tunnel_sender};

/// `PACKET_HOST`: for this host, whatever the destination MAC says.
const PACKET_HOST: u32 = 0;

pub struct Skb {
    raw: *mut __sk_buff,
}

impl Bytes for Skb {
    const VARIABLE_OFFSETS: bool = true;

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Result<[u8; N], Truncated> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the kernel writes all N bytes, or none and says so.
        unsafe {
            match bpf_skb_load_bytes(self.raw.cast(), offset as u32, bytes.as_mut_ptr().cast(), N as u32) {
                0 => Ok(bytes.assume_init()),
                _ => Err(Truncated),
            }
        }
    }

    #[inline(always)]
    fn load_into<const N: usize>(&self, offset: usize, to: &mut [u8; N]) -> Result<(), Truncated> {
        // SAFETY: there is room for N bytes.
        let result =
            unsafe { bpf_skb_load_bytes(self.raw.cast(), offset as u32, to.as_mut_ptr().cast(), N as u32) };
        if result == 0 { Ok(()) } else { Err(Truncated) }
    }
}

impl Skb {
    #[inline(always)]
    pub fn new(context: &TcContext) -> Self {
        Self { raw: context.as_ptr().cast() }
    }

    /// The buffer that a function of global linkage was given, and what to give it.
    #[inline(always)]
    pub const fn of_raw(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    #[inline(always)]
    pub const fn raw(&self) -> *mut __sk_buff {
        self.raw
    }

    /// The interface that the program hangs on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.raw).ifindex }
    }

    /// The interface that the packet entered the host by; 0 if a process of the host sent it.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.raw).ingress_ifindex }
    }

    /// The frame was sent to this machine's MAC.
    #[inline(always)]
    pub fn is_for_host(&self) -> bool {
        // SAFETY: the context outlives the program.
        unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    /// The frame is one of a VLAN, whose tag the NIC or the kernel has taken out of it. One with the tag of priority alone (VLAN 0,
    /// IEEE 802.1Q section 6.9.1) is of none.
    #[inline(always)]
    pub fn is_of_vlan(&self) -> bool {
        const VLAN_ID: u32 = 0xfff;
        // SAFETY: the context outlives the program.
        unsafe { (*self.raw).vlan_present != 0 && (*self.raw).vlan_tci & VLAN_ID != 0 }
    }

    /// For helpers that take a context of any kind.
    #[inline(always)]
    pub fn context(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn store<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), DropReason> {
        self.store_with(offset, bytes, 0)
    }

    #[inline(always)]
    fn store_with<const N: usize>(
        &self,
        offset: usize,
        bytes: &[u8; N],
        flags: u64,
    ) -> Result<(), DropReason> {
        // SAFETY: the kernel reads N bytes, which are there.
        let result = unsafe {
            bpf_skb_store_bytes(self.raw.cast(), offset as u32, bytes.as_ptr().cast(), N as u32, flags)
        };
        if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    /// Overwrites bytes that no checksum covers, or whose checksum is overwritten with them.
    #[inline(always)]
    pub fn write<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), DropReason> {
        self.store(offset, bytes)
    }

    /// As [`Skb::write`], for bytes that a NIC may have summed up with the packet.
    #[inline(always)]
    pub fn write_counted<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), DropReason> {
        self.store_with(offset, bytes, BPF_F_RECOMPUTE_CSUM.into())
    }

    #[inline(always)]
    pub fn set_macs(&self, destination: MacAddr, source: MacAddr) -> Result<(), DropReason> {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (destination.0, source.0);
        self.store(0, &[a, b, c, d, e, f, g, h, i, j, k, l])
    }

    /// Changes an address of a flow, and the checksums that cover it.
    #[inline(always)]
    fn replace_address(&self, flow: &Flow, offset: usize, from: Ip, to: Ip) -> Result<(), DropReason> {
        if from == to {
            return Ok(());
        }
        let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled_0(flow);
        self.replace(flow.version, offset, (from, to), (flow.address_checksum_offset(), flags))
    }

    #[inline(always)]
    pub fn replace_port(&self, flow: &Flow, offset: usize, from: Port, to: Port) -> Result<(), DropReason> {
        if from == to || !flow.has_transport() {
            return Ok(());
        }
        if flow.is_sctp() {
            return self.replace_sctp_port(flow, offset, (from, to));
        }
        let flags = mangled_0(flow) | 2;
        self.replace_l4(flow.checksum_offset(), from.to_be_u16().into(), to.to_be_u16().into(), flags)?;
        self.store(flow.transport_offset + offset, &to.0)
    }

    /// The checksum of a packet in fragments depends on how long it is, which its first fragment doesn't say.
    #[inline(always)]
    fn replace_sctp_port(
        &self,
        flow: &Flow,
        offset: usize,
        (from, to): (Port, Port),
    ) -> Result<(), DropReason> {
        if flow.part != Part::Whole {
            return Err(DropReason::Fragment);
        }
        let ports = u32::from(u16::from_le_bytes(from.0)) | u32::from(u16::from_le_bytes(to.0)) << 16;
        let (start, len) = (flow.transport_offset as u32, flow.transport_len().into());
        let result = sctp_replace_port(self.raw, start, offset as u32, ports, len);
        if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    /// An address of a packet that gets a header of the other version: the checksum of the transport that covers it. The
    /// header itself is to be written, counted.
    #[inline(always)]
    pub fn cover_address(&self, flow: &Flow, from: Ip, to: Ip) -> Result<(), DropReason> {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled_0(flow);
        self.replace_l4(flow.checksum_offset(), 0, difference(from, to), flags)
    }

    /// Changes the MSS at this offset in the segment that begins at `start`. The checksum's words begin at even offsets.
    #[inline(always)]
    pub fn replace_mss(&self, start: usize, offset: usize, (from, to): (u16, u16)) -> Result<(), DropReason> {
        let is_odd = offset & 1 != 0;
        let in_place = |mss: u16| u64::from(if is_odd { mss } else { mss.to_be() });
        self.replace_l4(start + flow::TCP_CHECKSUM_OFFSET, in_place(from), in_place(to), 2)?;
        self.store(start + offset, &to.to_be_bytes())
    }

    /// Changes an address of an ICMP error's own header, and the checksum that covers it.
    #[inline(always)]
    pub fn replace_error_address(
        &self,
        version: Version,
        offset: usize,
        (from, to): (Ip, Ip),
    ) -> Result<(), DropReason> {
        // ICMP has no pseudo-header (RFC 792), ICMPv6 has one (RFC 4443 section 2.3).
        let covered = match version {
            Version::V4 => None,
            Version::V6 => Some(Version::V6.icmp_checksum_offset()),
        };
        self.replace(version, offset, (from, to), (covered, BPF_F_PSEUDO_HDR.into()))
    }

    /// Changes an address inside the packet that an ICMP error carries, and the checksum that covers it: that header's own,
    /// by which the error's stays as it is, or the error's.
    #[inline(always)]
    pub fn replace_embedded_address(
        &self,
        version: Version,
        offset: usize,
        (from, to): (Ip, Ip),
    ) -> Result<(), DropReason> {
        match version {
            Version::V4 => {
                self.replace_l3(icmp::EMBEDDED_CHECKSUM_OFFSET4, from.low(), to.low())?;
                self.store(offset, &to.low().0)
            }
            Version::V6 => {
                self.replace_l4(Version::V6.icmp_checksum_offset(), 0, difference(from, to), 0)?;
                self.store(offset, &to.0)
            }
        }
    }

    /// Changes a port inside the packet that an ICMP error carries, and the error's checksum.
    #[inline(always)]
    pub fn replace_embedded_port(
        &self,
        version: Version,
        offset: usize,
        (from, to): (Port, Port),
    ) -> Result<(), DropReason> {
        let covered = version.icmp_checksum_offset();
        self.replace_l4(covered, from.to_be_u16().into(), to.to_be_u16().into(), 2)?;
        self.store(offset, &to.0)
    }

    /// Changes an address of the IP header: its checksum, which IPv6 has not, and that of the transport.
    #[inline(always)]
    fn replace(
        &self,
        version: Version,
        offset: usize,
        (from, to): (Ip, Ip),
        (covered, flags): (Option<usize>, u64),
    ) -> Result<(), DropReason> {
        match version {
            Version::V4 => {
                let (from, to) = (from.low(), to.low());
                self.replace_l3(ipv4::CHECKSUM_OFFSET, from, to)?;
                if let Some(covered) = covered {
                    self.replace_l4(covered, from.to_be_u32().into(), to.to_be_u32().into(), flags | 4)?;
                }
                self.store(offset, &to.0)
            }
            Version::V6 => {
                let Some(covered) = covered else { return self.write_counted(offset, &to.0) };
                self.replace_l4(covered, 0, difference(from, to), flags)?;
                // The helper takes the change off the sum that a NIC may have made of the whole packet, as is right where
                // another checksum makes up for the address: here that is done by counting the address.
                self.write_counted(offset, &to.0)
            }
        }
    }

    #[inline(always)]
    fn replace_l3(&self, offset: usize, from: Ip4, to: Ip4) -> Result<(), DropReason> {
        let (from, to) = (from.to_be_u32().into(), to.to_be_u32().into());
        // SAFETY: the helper checks the offset against the packet.
        let result = unsafe { bpf_l3_csum_replace(self.raw.cast(), offset as u32, from, to, 4) };
        if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    /// Corrects a checksum at `offset` that covers a changed word.
    #[inline(always)]
    fn replace_l4(&self, offset: usize, from: u64, to: u64, flags: u64) -> Result<(), DropReason> {
        // SAFETY: the helper checks the offset against the packet.
        let result = unsafe { bpf_l4_csum_replace(self.raw.cast(), offset as u32, from, to, flags) };
        if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    /// As [`Skb::set_source`], where the port stays.
    #[inline(always)]
    pub fn set_source_address(&self, flow: &Flow, address: Ip) -> Result<(), DropReason> {
        self.replace_address(flow, flow.version.source_offset(), flow.tuple.source, address)
    }

    /// As [`Skb::set_destination`], where the port stays.
    #[inline(always)]
    pub fn set_destination_address(&self, flow: &Flow, address: Ip) -> Result<(), DropReason> {
        self.replace_address(flow, flow.version.destination_offset(), flow.tuple.destination, address)
    }

    #[inline(always)]
    pub fn set_source(&self, flow: &Flow, address: Ip, port: Port) -> Result<(), DropReason> {
        self.set_source_address(flow, address)?;
        self.replace_port(flow, flow::SOURCE_PORT_OFFSET, flow.tuple.source_port, port)
    }

    #[inline(always)]
    pub fn set_destination(&self, flow: &Flow, address: Ip, port: Port) -> Result<(), DropReason> {
        self.set_destination_address(flow, address)?;
        self.replace_port(flow, flow::DESTINATION_PORT_OFFSET, flow.tuple.destination_port, port)
    }

    /// Makes the frame `len` bytes long.
    #[inline(always)]
    pub fn set_len(&self, len: usize) -> Result<(), DropReason> {
        // SAFETY: a plain helper call.
        let result = unsafe { bpf_skb_change_tail(self.raw, len as u32, 0) };
        if result == 0 { Ok(()) } else { Err(DropReason::Rewrite) }
    }

    /// Several packets of one flow, which the kernel has put together and will take apart again.
    #[inline(always)]
    pub fn is_aggregate(&self) -> bool {
        self.payload_of_parts() != 0
    }

    /// What each of an aggregate's packets has behind its headers, bytes; 0 for one packet.
    #[inline(always)]
    fn payload_of_parts(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.raw).gso_size }
    }

    /// The longest of an aggregate's packets, bytes from the IP header on, of which these are the first; `None` for one packet.
    /// Beyond all bounds where other headers are between IP and transport.
    #[inline(always)]
    pub fn part_len(&self, ip: &[u8; ipv4::MIN_LEN]) -> Option<u32> {
        const UNKNOWN: u32 = u32::MAX;
        const UDP_LEN: u32 = 8;
        /// The longest header (RFC 9293 section 3.1), and where its length is: in the upper half of this byte, in words.
        const TCP_LEN: u32 = 60;
        const TCP_LEN_OFFSET: usize = 12;
        let payload = self.payload_of_parts();
        if payload == 0 {
            return None;
        }
        let (ip_len, protocol) =
            if ip[0] >> 4 == 4 { (usize::from(ip[0] & 0x0f) * 4, ip[9]) } else { (ipv6::LEN, ip[6]) };
        if protocol != protocol::UDP && protocol != protocol::TCP {
            return Some(UNKNOWN);
        }
        let transport_len = if protocol == protocol::UDP {
            UDP_LEN
        } else {
            self.load::<1>(ip::OFFSET + ip_len + TCP_LEN_OFFSET)
                .map_or(TCP_LEN, |[offset]| u32::from(offset >> 4) * 4)
        };
        Some(payload + ip_len as u32 + transport_len)
    }

    /// The flow's hash, as the kernel spreads flows by.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // SAFETY: a plain helper call.
        unsafe { bpf_get_hash_recalc(self.raw) }
    }

    /// Makes room behind the Ethernet header for those of a tunnel and another Ethernet header. False, with the packet
    /// as it was, if the kernel can't: it is in a tunnel of the task's own already, or an aggregate of another kind than it
    /// takes apart in a tunnel.
    #[inline(always)]
    pub fn make_tunnel_room(&self, outer: Version) -> bool {
        const FLAGS: u32 =
            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
        const INNER_ETHERNET: u64 = (ethernet::LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        let network = match outer {
            Version::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
            Version::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        };
        self.adjust_room(vxlan::overhead(outer) as i32, (FLAGS | network) as u64 | INNER_ETHERNET).is_ok()
    }

    /// Takes a tunnel's headers off; the inner Ethernet header takes the place of the outer one. A checksum that the NIC has
    /// verified inside the tunnel stays verified. An aggregate of another kind than the kernel can take out stays as it was; one
    /// whose version is not the tunnel's must not come here.
    #[inline(always)]
    pub fn leave_tunnel(
        &self,
        inner: &Ethernet,
        (outer, version): (Version, Version),
    ) -> Result<(), DropReason> {
        if version != outer {
            self.become_version(version)?;
        }
        // SAFETY: plain helper calls.
        let is_verified = unsafe {
            bpf_csum_level(self.raw, BPF_CSUM_LEVEL_QUERY.into()) > 0
                && bpf_csum_level(self.raw, BPF_CSUM_LEVEL_DEC.into()) == 0
        };
        let kept = if is_verified { BPF_F_ADJ_ROOM_NO_CSUM_RESET } else { 0 };
        let left =
            self.adjust_room(-(vxlan::overhead(version) as i32), (BPF_F_ADJ_ROOM_FIXED_GSO | kept).into());
        if left.is_err() && is_verified {
            // SAFETY: as above.
            unsafe { bpf_csum_level(self.raw, BPF_CSUM_LEVEL_INC.into()) };
        }
        left.and_then(|()| self.store(0, &inner.to_bytes()))
    }

    /// The kernel takes the packet for one of the other version from here on. That makes its first header as long as one of that
    /// version is; nothing of it counts any more.
    #[inline(always)]
    fn become_version(&self, version: Version) -> Result<(), DropReason> {
        let ether_type = u16::from_ne_bytes(version.ether_type());
        // SAFETY: a plain helper call.
        let result = unsafe { bpf_skb_change_proto(self.raw, ether_type, 0) };
        if result == 0 { Ok(()) } else { Err(DropReason::Tunnel) }
    }

    #[inline(always)]
    fn adjust_room(&self, change: i32, flags: u64) -> Result<(), DropReason> {
        // SAFETY: a plain helper call.
        let result =
            unsafe { bpf_skb_adjust_room(self.raw, change, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, flags) };
        if result == 0 { Ok(()) } else { Err(DropReason::Tunnel) }
    }

    /// Lets the host's stack take the packet although its destination MAC is not the device's.
    #[inline(always)]
    pub fn pass_to_host(&self) -> Outcome {
        // SAFETY: a plain helper call.
        let result = unsafe { bpf_skb_change_type(self.raw, PACKET_HOST) };
        if result == 0 { Ok(Verdict::Pass) } else { Err(DropReason::Rewrite) }
    }
}

/// Out of `ifindex`.
#[inline(always)]
pub fn send(ifindex: u32) -> Verdict {
    Verdict::Forward(send_out(ifindex))
}

/// As [`send`]: the action.
#[inline(always)]
pub fn send_out(ifindex: u32) -> i32 {
    // SAFETY: a plain helper call.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Out of `ifindex` to this neighbour, whose MAC the kernel finds and keeps fresh: the action.
#[inline(always)]
pub fn send_by(ifindex: u32, gateway: Ip) -> i32 {
    let family = fib::family(Version::of_address(gateway)).into();
    let mut next_hop = bpf_redir_neigh { nh_family: family, ..cleared_neighbour() };
    if gateway.is_v4() {
        next_hop.__bindgen_anon_1.ipv4_nh = gateway.low().to_be_u32();
    } else {
        next_hop.__bindgen_anon_1.ipv6_nh = gateway.to_be_words();
    }
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the kernel reads the parameters, which are there.
    unsafe { bpf_redirect_neigh(ifindex, &raw mut next_hop, size, 0) as i32 }
}

#[inline(always)]
const fn cleared_neighbour() -> bpf_redir_neigh {
    // SAFETY: of plain integers.
    unsafe { core::mem::zeroed() }
}

/// As if it had come in by `ifindex`.
#[inline(always)]
pub fn receive_at(ifindex: u32) -> Verdict {
    // SAFETY: a plain helper call.
    Verdict::Forward(unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) } as i32)
}

/// Into the sandbox at the other end of the veth pair `ifindex`.
#[inline(always)]
pub fn send_to_sandbox(ifindex: u32) -> Verdict {
    // SAFETY: a plain helper call.
    Verdict::Forward(unsafe { bpf_redirect_peer(ifindex, 0) } as i32)
}

/// Out of `ifindex`, by its routes and neighbours.
#[inline(always)]
pub fn send_routed(ifindex: u32) -> Verdict {
    // SAFETY: no parameters: the kernel looks the next hop up by the packet's destination.
    Verdict::Forward(unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) } as i32)
}

/// What a checksum changes by when an address does.
#[inline(always)]
fn difference(from: Ip, to: Ip) -> u64 {
    let (mut from, mut to) = (from.to_be_words(), to.to_be_words());
    // SAFETY: the kernel reads sixteen bytes of each.
    let sum = unsafe { bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0) };
    sum as u32 as u64
}

/// A UDP checksum of zero means "none" (RFC 768) and must stay so.
#[inline(always)]
const fn mangled_0(flow: &Flow) -> u64 {
    if flow.is_udp() { BPF_F_MARK_MANGLED_0 as u64 } else { 0 }
}

/// Of a packet whose transport starts at `start` and has `len` bytes: changes the port at `offset`, the old and the new one in
/// `ports`, and the checksum; not 0 if that can't be done. Of global linkage: the verifier looks at it once, and not for each
/// of the ways that lead here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sctp_replace_port(
    raw: *mut __sk_buff,
    start: u32,
    offset: u32,
    ports: u32,
    len: u32,
) -> i32 {
    let packet = Skb::of_raw(raw);
    let (from, to) = ((ports as u16).to_le_bytes(), ((ports >> 16) as u16).to_le_bytes());
    let place = start as usize + sctp::CHECKSUM_OFFSET;
    let Ok(checksum) = packet.load::<4>(place) else { return -1 };
    let changed = sctp::changed_bits(offset as usize, (from, to));
    if let Some(checksum) = sctp::changed_checksum(checksum, sctp::change(changed, len as u16))
        && packet.write_counted(place, &checksum).is_err()
    {
        return -1;
    }
    packet.write_counted((start + offset) as usize, &to).map_or(-1, |()| 0)
}
