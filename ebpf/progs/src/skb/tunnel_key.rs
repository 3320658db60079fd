//! What the kernel's VXLAN device is told of a packet's tunnel, and tells of one.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key};
use aya_ebpf::helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use ebpf_abi::{DropReason, Ip, Ip4};

use super::Skb;

const TUNNEL_TTL: u8 = 64;

/// The tunnel that a packet came through.
pub struct Tunnel {
    pub remote: Ip,
    pub vni: u32,
}

impl Skb {
    /// The tunnel that the packet came through; `None` if it came through none.
    #[inline(always)]
    pub fn tunnel(&self) -> Option<Tunnel> {
        let mut key = cleared_key();
        // SAFETY: all zero is a tunnel key.
        let key = unsafe { key.assume_init_mut() };
        // SAFETY: there is room for a key.
        let remote = unsafe { tunnel_sender(self.raw, key) }?;
        Some(Tunnel { remote, vni: key.tunnel_id })
    }

    /// Gives the packet to the tunnel device's encapsulation. DF stays clear: a packet that is too long for the underlay
    /// is fragmented rather than lost.
    #[inline(always)]
    pub fn set_tunnel(&self, (local, remote): (Ip, Ip), vni: u32) -> Result<(), DropReason> {
        let flags = if remote.is_v4() { BPF_F_ZERO_CSUM_TX } else { BPF_F_ZERO_CSUM_TX | BPF_F_TUNINFO_IPV6 };
        let mut key = cleared_key();
        let size = size_of::<bpf_tunnel_key>() as u32;
        // SAFETY: all zero is a tunnel key.
        let result = unsafe {
            let key = key.assume_init_mut();
            key.tunnel_id = vni;
            key.tunnel_ttl = TUNNEL_TTL;
            if remote.is_v4() {
                key.__bindgen_anon_1.remote_ipv4 = remote.low().to_u32();
            } else {
                key.__bindgen_anon_1.remote_ipv6 = remote.to_be_words();
                // Else the kernel chooses among the uplink's addresses, of which peers know but one.
                key.__bindgen_anon_3.local_ipv6 = local.to_be_words();
            }
            bpf_skb_set_tunnel_key(self.raw, key, size, flags.into())
        };
        if result == 0 { Ok(()) } else { Err(DropReason::Tunnel) }
    }
}

/// Who sent the packet through a tunnel, of either family, whose other properties are in `key` then; `None` if it came through
/// none.
///
/// # Safety
/// There must be room for a key.
#[inline(always)]
pub unsafe fn tunnel_sender(raw: *mut __sk_buff, key: *mut bpf_tunnel_key) -> Option<Ip> {
    const SIZE: u32 = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: the kernel fills the key in, with the member of the family asked for, or says that it did not.
    unsafe {
        if bpf_skb_get_tunnel_key(raw, key, SIZE, 0) == 0 {
            return Some(Ip::v4(Ip4::from_u32((*key).__bindgen_anon_1.remote_ipv4)));
        }
        if bpf_skb_get_tunnel_key(raw, key, SIZE, BPF_F_TUNINFO_IPV6.into()) == 0 {
            return Some(Ip::from_be_words((*key).__bindgen_anon_1.remote_ipv6));
        }
    }
    None
}

/// All zero, by whole words: for so many bytes the compiler would call its `memset`, which goes byte by byte.
#[inline(always)]
fn cleared_key() -> MaybeUninit<bpf_tunnel_key> {
    const N_WORDS: usize = size_of::<bpf_tunnel_key>() / 4;
    const { assert!(size_of::<bpf_tunnel_key>() == 44 && align_of::<bpf_tunnel_key>() == 4) };
    let mut key = MaybeUninit::<bpf_tunnel_key>::uninit();
    let words = key.as_mut_ptr().cast::<u32>();
    let mut index = 0;
    while index < N_WORDS {
        // SAFETY: within the key, and aligned as its members are.
        unsafe { words.add(index).write_volatile(0) };
        index += 1;
    }
    key
}
