//! An answer costs no allocation, however many names there are.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use dataplane_dns::answer::{Outcome, SandboxView, answer, sandbox_views};
use dataplane_dns::response::Transport;
use dataplane_dns::{Forwarding, NetworkZone, SandboxZone, Zones};
use dataplane_model::{NetworkKey, SandboxId};

thread_local! {
    static N_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's, counting.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.set(N_ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A sandbox in a network of `n_names` names with an address each.
fn view(n_names: u32) -> SandboxView {
    let key = NetworkKey(1);
    let address = |i: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + i));
    let names: BTreeMap<_, _> = (0..n_names).map(|i| (format!("n{i}"), vec![address(i)])).collect();
    let reverse = (0..n_names).map(|i| (address(i), format!("n{i}"))).collect();
    let zone = NetworkZone { name: "app".to_owned(), names, reverse, ..NetworkZone::default() };
    let sandbox = SandboxZone {
        netns: "/n".into(),
        networks: vec![key],
        forwarding: Forwarding::Forbidden,
        keeps_short_names: false,
    };
    let id = SandboxId("s".to_owned());
    let zones = Zones {
        networks: [(key, zone)].into(),
        sandboxes: [(id.clone(), sandbox)].into(),
        ..Zones::default()
    };
    sandbox_views(zones).remove(&id).unwrap()
}

fn query(name: &str, record_type: u8) -> Vec<u8> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, record_type, 0, 1]);
    query
}

/// Allocations of one answer into a buffer that was used before.
fn n_allocations(view: &SandboxView, name: &str, record_type: u8) -> usize {
    let query = query(name, record_type);
    let mut out = Vec::with_capacity(4096);
    let before = N_ALLOCATIONS.get();
    let outcome = answer(&query, view, Transport::Udp, 1, &mut out);
    let after = N_ALLOCATIONS.get();
    assert_eq!(outcome, Outcome::Reply);
    after - before
}

#[test]
fn an_answer_allocates_nothing_however_many_names_there_are() {
    const A: u8 = 1;
    const AAAA: u8 = 28;
    for n_names in [10, 100_000] {
        let view = view(n_names);
        let last = format!("n{}", n_names - 1);
        let cost = [
            n_allocations(&view, &last, A),
            n_allocations(&view, &format!("{last}.app"), A),
            n_allocations(&view, "nobody", A),
            n_allocations(&view, &last, AAAA),
        ];
        assert_eq!(cost, [0; 4], "{n_names} names");
    }
}
