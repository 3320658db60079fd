//! What the kernel's routes say of an address.

use core::mem::MaybeUninit;

pub use aya_ebpf::bindings::bpf_fib_lookup as Lookup;
use aya_ebpf::helpers::bpf_fib_lookup;
use ebpf_abi::{Ip, NodeConfig};
use ebpf_packet::Version;

use crate::skb::Skb;

/// `BPF_FIB_LKUP_RET_SUCCESS` and `BPF_FIB_LKUP_RET_NO_NEIGH`.
pub const FOUND: i64 = 0;
pub const NO_NEIGHBOUR: i64 = 7;

/// `AF_INET` or `AF_INET6`.
pub const fn family(version: Version) -> u8 {
    match version {
        Version::V4 => 2,
        Version::V6 => 10,
    }
}

/// Writes source and destination.
#[inline(always)]
pub fn set_addresses(version: Version, lookup: &mut Lookup, (source, destination): (&Ip, &Ip)) {
    match version {
        Version::V4 => {
            lookup.__bindgen_anon_3.ipv4_src = source.low().to_be_u32();
            lookup.__bindgen_anon_4.ipv4_dst = destination.low().to_be_u32();
        }
        Version::V6 => {
            lookup.__bindgen_anon_3.ipv6_src = source.to_be_words();
            lookup.__bindgen_anon_4.ipv6_dst = destination.to_be_words();
        }
    }
}

/// Asks for the way of a packet of `len` bytes, as if it had come in by the uplink; of IPv6, by the tunnel device: the kernel
/// tells ways of what may be forwarded alone, and an uplink that forwards IPv6 would take no router's word any more (RFC 4861
/// section 6.2.1). Source and destination are in `lookup`.
#[inline(always)]
pub fn ask(config: &NodeConfig, packet: &Skb, (version, len): (Version, u16), lookup: &mut Lookup) -> i64 {
    lookup.family = family(version);
    lookup.__bindgen_anon_1.tot_len = len;
    lookup.ifindex = match version {
        Version::V4 => config.uplink_ifindex,
        Version::V6 => config.vxlan_ifindex,
    };
    // SAFETY: a plain helper call; every byte of the look-up is written.
    unsafe { bpf_fib_lookup(packet.context(), lookup, size_of::<Lookup>() as i32, 0) }
}

/// All zero, by whole words: the compiler would call its `memset`, which goes byte by byte.
#[inline(always)]
pub fn cleared(lookup: &mut MaybeUninit<Lookup>) -> &mut Lookup {
    const N_WORDS: usize = size_of::<Lookup>() / 4;
    const { assert!(size_of::<Lookup>() == 64 && align_of::<Lookup>() >= 4) };
    let words = lookup.as_mut_ptr().cast::<u32>();
    let mut index = 0;
    while index < N_WORDS {
        // SAFETY: within the look-up, and aligned as its members are.
        unsafe { words.add(index).write_volatile(0) };
        index += 1;
    }
    // SAFETY: of integers, all of which are written.
    unsafe { lookup.assume_init_mut() }
}
