//! Running a program over a packet without a network (`BPF_PROG_TEST_RUN`): for tests.

use aya::programs::{Program, ProgramError};
use aya::{TestRun as _, TestRunOptions};
use ebpf_abi::ProgramId;

use super::object::{LoadError, Programs};

/// Room for what a program puts in front of a packet.
const HEADROOM: usize = 256;
/// Size and offsets of `__sk_buff` and `xdp_md` (linux/bpf.h).
const SKB_SIZE: usize = 192;
const SKB_INGRESS_IFINDEX: usize = 36;
const SKB_IFINDEX: usize = 40;
const XDP_SIZE: usize = 24;
const XDP_DATA_END: usize = 4;
const XDP_INGRESS_IFINDEX: usize = 12;

/// A packet as a program gets it.
#[derive(Debug, Clone, Copy)]
pub struct TestPacket<'a> {
    pub bytes: &'a [u8],
    /// The interface that the program hangs on; 0 for loopback. XDP: one that has an XDP program.
    pub ifindex: u32,
    /// The interface that the packet entered the host by; 0 for a process of the host.
    pub ingress_ifindex: u32,
}

/// What a program made of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestOutcome {
    /// The hook's own action code.
    pub code: u32,
    pub bytes: Vec<u8>,
}

impl<'a> TestPacket<'a> {
    /// A packet that came in by `ifindex`.
    pub const fn received(bytes: &'a [u8], ifindex: u32) -> Self {
        Self { bytes, ifindex, ingress_ifindex: ifindex }
    }

    /// A packet that a process of the host sends by `ifindex`.
    pub const fn sent(bytes: &'a [u8], ifindex: u32) -> Self {
        Self { bytes, ifindex, ingress_ifindex: 0 }
    }

    fn skb_context(&self) -> Vec<u8> {
        let mut context = vec![0; SKB_SIZE];
        context[SKB_INGRESS_IFINDEX..][..4].copy_from_slice(&self.ingress_ifindex.to_ne_bytes());
        context[SKB_IFINDEX..][..4].copy_from_slice(&self.ifindex.to_ne_bytes());
        context
    }

    fn xdp_context(&self) -> Vec<u8> {
        let mut context = vec![0; XDP_SIZE];
        let size = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        context[XDP_DATA_END..][..4].copy_from_slice(&size.to_ne_bytes());
        context[XDP_INGRESS_IFINDEX..][..4].copy_from_slice(&self.ifindex.to_ne_bytes());
        context
    }
}

impl Programs {
    /// Runs a packet program over a packet. Redirections are decided and not done.
    pub fn test_run(
        &mut self,
        program: ProgramId,
        packet: &TestPacket<'_>,
    ) -> Result<TestOutcome, LoadError> {
        run(self.get(program)?, program.label(), packet)
    }
}

fn run(program: &Program, name: &'static str, packet: &TestPacket<'_>) -> Result<TestOutcome, LoadError> {
    let mut bytes = vec![0; packet.bytes.len() + HEADROOM];
    let context = match program {
        Program::Xdp(_) => packet.xdp_context(),
        _ => packet.skb_context(),
    };
    let options = TestRunOptions {
        data_in: Some(packet.bytes),
        data_out: Some(&mut bytes),
        ctx_in: Some(&context),
        repeat: 1,
        ..TestRunOptions::default()
    };
    let result = match program {
        Program::Xdp(program) => program.test_run(options),
        Program::SchedClassifier(program) => program.test_run(options),
        _ => return Err(LoadError::Absent { name }),
    };
    let refused = |source: ProgramError| LoadError::Program { name, source: Box::new(source) };
    let result = result.map_err(refused)?;
    bytes.truncate(usize::try_from(result.data_size_out).unwrap_or(usize::MAX));
    Ok(TestOutcome { code: result.return_value, bytes })
}
