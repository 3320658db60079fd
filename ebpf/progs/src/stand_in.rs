//! Which IPv4 address stands for a client that comes by IPv6: see [`ebpf_abi::stand_in`].

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use ebpf_abi::stand_in::{CANDIDATES, STAND_IN_HELD, candidate, is_one};
use ebpf_abi::{Ip, Ip4, StandIn};
use ebpf_packet::hash::client_hash;

use crate::maps::{self, STAND_INS};
use crate::scratch;

/// The client that an address of a task's packet means: the address itself, unless it stands for a client. `None` if it
/// stands for nobody.
#[inline(always)]
pub fn client(address: Ip) -> Option<Ip> {
    if !address.is_v4() || !is_one(address.low()) {
        return Some(address);
    }
    let row = STAND_INS.get_ptr_mut(address.low())?;
    // SAFETY: the row stays in its place while this program runs; two CPUs that write it write the same.
    let row = unsafe { &mut *row };
    seen(row);
    Some(row.client)
}

#[inline(always)]
fn seen(row: &mut StandIn) {
    let tick = maps::tick();
    if row.last_seen != tick {
        row.last_seen = tick;
    }
}

/// The address that stands for a client, found or given now; unspecified if none is free. While a flow `holds` it nobody else
/// gets it.
#[inline(always)]
pub fn of(client: &Ip, holds: bool) -> Ip4 {
    let hash = client_hash(*client);
    let mut found = find(client, hash, holds);
    if found.is_unspecified() {
        found = claim(client, hash);
    }
    found
}

/// As [`of`], for who only asks.
#[inline(always)]
pub fn known(client: &Ip) -> Ip4 {
    find(client, client_hash(*client), false)
}

#[inline(always)]
fn find(client: &Ip, hash: u32, holds: bool) -> Ip4 {
    for number in 0..CANDIDATES {
        let address = candidate(hash, number);
        if let Some(row) = STAND_INS.get_ptr_mut(address) {
            // SAFETY: as in `client`.
            let row = unsafe { &mut *row };
            if row.client == *client {
                seen(row);
                if holds && row.state != STAND_IN_HELD {
                    row.state = STAND_IN_HELD;
                }
                return address;
            }
        }
    }
    Ip4::UNSPECIFIED
}

#[inline(always)]
fn claim(client: &Ip, hash: u32) -> Ip4 {
    let Some(row) = scratch::stand_in(StandIn::new(*client, maps::tick())) else { return Ip4::UNSPECIFIED };
    for number in 0..CANDIDATES {
        let address = candidate(hash, number);
        if STAND_INS.insert(address, &*row, BPF_NOEXIST.into()).is_ok() {
            return address;
        }
        // SAFETY: the row stays in its place while this program runs.
        let Some(other) = (unsafe { STAND_INS.get(address) }) else { continue };
        // Another CPU may have been faster for the same client.
        let is_taken = other.client != *client
            && (!other.is_free(row.last_seen) || STAND_INS.insert(address, &*row, BPF_ANY.into()).is_err());
        if !is_taken {
            return address;
        }
    }
    Ip4::UNSPECIFIED
}
