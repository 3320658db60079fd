//! One program over one frame: verdict, bytes out, counters.

use dataplane_kernel::bpf::{Bpf, TestPacket};
use ebpf_abi::limits::ROUTER_MAC;
use ebpf_abi::{CounterRow, DropReason, Ip, Ip4, MacAddr, ProgramId};

use crate::support::lab::{CLIENT, CLIENT6, Lab, tc_mode};
use crate::support::packets::{Between, between};

pub const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 100]);
pub const NODE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 11]);

/// What a program is to do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Untouched.
    Pass,
    PassAs(Vec<u8>),
    ForwardAs(Vec<u8>),
    Drop(DropReason),
}

/// One node's programs, run in its namespace.
pub struct Bench<'a> {
    pub bpf: &'a mut Bpf,
    pub program: ProgramId,
    /// The interface that the program hangs on, and that the packet came by.
    pub ifindex: u32,
    pub ingress_ifindex: u32,
}

impl Bench<'_> {
    pub fn received(bpf: &mut Bpf, program: ProgramId, ifindex: u32) -> Bench<'_> {
        Bench { bpf, program, ifindex, ingress_ifindex: ifindex }
    }

    #[track_caller]
    pub fn check(&mut self, name: &str, frame: &[u8], expect: &Expect) {
        let before = self.bpf.tables.counters.program(self.program).unwrap();
        let packet =
            TestPacket { bytes: frame, ifindex: self.ifindex, ingress_ifindex: self.ingress_ifindex };
        let outcome = self.bpf.hooks.programs().test_run(self.program, &packet).unwrap();
        let after = self.bpf.tables.counters.program(self.program).unwrap();
        let (codes, bytes) = match expect {
            Expect::Pass => (self.pass_codes(), Some(frame)),
            Expect::PassAs(bytes) => (self.pass_codes(), Some(bytes.as_slice())),
            Expect::ForwardAs(bytes) => (self.forward_codes(), Some(bytes.as_slice())),
            Expect::Drop(_) => (self.drop_codes(), None),
        };
        assert_eq!(after, counted(&before, expect), "{name}: counters");
        assert!(codes.contains(&outcome.code), "{name}: verdict {}", outcome.code.cast_signed());
        if let Some(bytes) = bytes {
            assert_eq!(hex(&outcome.bytes), hex(bytes), "{name}: bytes");
        }
    }

    /// Forwards the frame; what becomes of its bytes is another test's.
    #[track_caller]
    pub fn check_forwarded(&mut self, name: &str, frame: &[u8]) {
        let packet = TestPacket::received(frame, self.ifindex);
        let outcome = self.bpf.hooks.programs().test_run(self.program, &packet).unwrap();
        assert!(
            self.forward_codes().contains(&outcome.code),
            "{name}: verdict {}",
            outcome.code.cast_signed()
        );
    }

    fn is_xdp(&self) -> bool {
        self.program == ProgramId::MeshXdp
    }

    fn pass_codes(&self) -> &'static [u32] {
        if self.is_xdp() { &[2] } else { &[u32::MAX] }
    }

    fn forward_codes(&self) -> &'static [u32] {
        if self.is_xdp() { &[3, 4] } else { &[7] }
    }

    fn drop_codes(&self) -> &'static [u32] {
        if self.is_xdp() { &[1] } else { &[2] }
    }
}

fn counted(before: &CounterRow, expect: &Expect) -> CounterRow {
    let mut row = *before;
    row.received += 1;
    match expect {
        Expect::Pass | Expect::PassAs(_) => row.passed += 1,
        Expect::ForwardAs(_) => row.forwarded += 1,
        Expect::Drop(reason) => row.drops[reason.number() as usize] += 1,
    }
    row
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Runs `work` over the programs of one node, whose maps are filled.
pub fn bench(node: usize, work: impl FnOnce(&mut Bpf, &Lab) + Send) {
    let lab = Lab::new(tc_mode());
    lab.start();
    lab.with_bpf(node, |bpf| work(bpf, &lab));
    lab.check_counters();
}

pub fn client_to(node: impl Into<Ip>) -> Between {
    let node = node.into();
    let client = if node.is_v4() { CLIENT.into() } else { CLIENT6 };
    between((CLIENT_MAC, client), (NODE_MAC, node))
}

/// The client's frame as it goes into the tunnel: all but the MACs unchanged.
pub fn tunnelled(mut frame: Vec<u8>, endpoint: Ip4) -> Vec<u8> {
    frame[0..6].copy_from_slice(&MacAddr::of_endpoint(endpoint).0);
    frame[6..12].copy_from_slice(&ROUTER_MAC.0);
    frame
}
