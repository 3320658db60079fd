//! Programs run many times over the same packet: before each run a small program restores what the last one changed, and
//! calls it. So a run finds its instructions and rows in the caches, as it does on a node with traffic.
//!
//! `BPF_PROG_TEST_RUN` by itself either gives the packet afresh and pays for a system call and cold caches, or repeats over
//! what the program left.
#![expect(unsafe_code, reason = "bpf(2) has no other door, and the restoring programs are made here")]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ebpf_abi::limits::MAX_PROGRAMS;
use ebpf_abi::{CounterRow, Ip4};

use self::asm::Insn;

mod asm;

/// Commands, types and helpers of `linux/bpf.h`.
mod uapi {
    pub const MAP_CREATE: libc::c_int = 0;
    pub const MAP_UPDATE_ELEM: libc::c_int = 2;
    pub const PROG_LOAD: libc::c_int = 5;
    pub const PROG_TEST_RUN: libc::c_int = 10;
    pub const MAP_TYPE_PROG_ARRAY: u32 = 3;
    pub const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
    pub const MAP_LOOKUP_ELEM: i32 = 1;
    pub const PROG_TYPE_SCHED_CLS: u32 = 3;
    pub const PROG_TYPE_XDP: u32 = 6;
    pub const ATTACH_XDP: u32 = 37;
    /// A table for jumps takes programs that take packets in several buffers, or such that don't: not both.
    pub const XDP_HAS_FRAGS: u32 = 1 << 5;
    pub const SKB_STORE_BYTES: i32 = 9;
    pub const TAIL_CALL: i32 = 12;
    pub const SKB_SET_TUNNEL_KEY: i32 = 21;
    pub const XDP_ADJUST_HEAD: i32 = 44;
    /// `XDP_PASS`, and `TC_ACT_UNSPEC`.
    pub const XDP_PASS: i32 = 2;
    pub const TC_ACT_UNSPEC: i32 = -1;
    /// Size of `struct bpf_tunnel_key`, and where the local address is in it.
    pub const TUNNEL_KEY_LEN: i16 = 44;
    pub const TUNNEL_KEY_LOCAL: i16 = 28;
    /// Size and offsets of `struct __sk_buff` and `struct xdp_md`.
    pub const SKB_LEN: usize = 192;
    pub const SKB_INGRESS_IFINDEX: usize = 36;
    pub const SKB_IFINDEX: usize = 40;
    pub const XDP_LEN: usize = 24;
    pub const XDP_DATA_END: usize = 4;
    pub const XDP_INGRESS_IFINDEX: usize = 12;
}

/// Where the IPv4 header has its source.
const SOURCE_OFFSET: i16 = 26;

/// What is done to the packet before each run.
#[derive(Debug, Clone, Copy)]
pub enum Restore<'a> {
    /// XDP: so many bytes in front are taken off, which a program that encapsulates has put there. The first packet needs
    /// them too.
    /// A frame that is no longer than `kept` was passed as it is, and stays so.
    Head { len: usize, kept: usize, another_flow: bool },
    /// tc: the frame's first bytes are written anew, and if a tunnel is given the packet is as if it came out of it.
    Bytes { first: &'a [u8], tunnel: Option<Tunnel> },
}

/// Where a packet came from.
#[derive(Debug, Clone, Copy)]
pub struct Tunnel {
    pub remote: Ip4,
    pub vni: u32,
}

/// A program behind one that restores.
pub struct Replay {
    kind: Kind,
    program: OwnedFd,
    /// What it jumps through.
    _jump: Option<OwnedFd>,
}

/// The hook that a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Xdp,
    Tc,
}

impl Restore<'_> {
    const fn kind(&self) -> Kind {
        match self {
            Self::Head { .. } => Kind::Xdp,
            Self::Bytes { .. } => Kind::Tc,
        }
    }
}

impl Replay {
    /// `program` after `restore`.
    pub fn of(program: BorrowedFd<'_>, restore: &Restore<'_>) -> Result<Self> {
        let kind = restore.kind();
        let jump = jump_table(program).context("a table for the jump")?;
        let program = load(kind, &restoring(restore, jump.as_raw_fd())).context("the restoring program")?;
        Ok(Self { kind, program, _jump: Some(jump) })
    }

    /// A program that does nothing after `restore`; without it that program alone.
    pub fn of_nothing(kind: Kind, restore: Option<&Restore<'_>>) -> Result<Self> {
        let program = load(kind, &nothing(kind)).context("the program that does nothing")?;
        match restore {
            Some(restore) => Self::of(program.as_fd(), restore),
            None => Ok(Self { kind, program, _jump: None }),
        }
    }

    /// A program that counts the packet in and out in a row of its CPU, as all of ours do, after `restore`. The table goes
    /// with the program.
    pub fn of_counting(restore: &Restore<'_>) -> Result<Self> {
        let mut create = MapCreateAttr {
            map_type: uapi::MAP_TYPE_PERCPU_ARRAY,
            key_size: 4,
            value_size: u32::try_from(size_of::<CounterRow>())?,
            max_entries: MAX_PROGRAMS,
        };
        // SAFETY: the attribute has no pointers; a descriptor that is returned is ours alone.
        let counters = unsafe { OwnedFd::from_raw_fd(bpf(uapi::MAP_CREATE, &mut create)?) };
        let program = load(Kind::Xdp, &counting(counters.as_raw_fd())).context("the program that counts")?;
        Self::of(program.as_fd(), restore)
    }

    /// The mean time of one run out of `repeat`, and the last run's verdict. The packet comes in by `ifindex`, as the
    /// calling thread's namespace knows it.
    pub fn run(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<(Duration, u32)> {
        let context = match self.kind {
            Kind::Xdp => xdp_context(frame.len(), ifindex),
            Kind::Tc => skb_context(ifindex),
        };
        let mut attr = TestRunAttr {
            prog_fd: self.program.as_raw_fd().cast_unsigned(),
            data_size_in: u32::try_from(frame.len())?,
            data_in: frame.as_ptr() as u64,
            repeat,
            ctx_size_in: u32::try_from(context.len())?,
            ctx_in: context.as_ptr() as u64,
            ..TestRunAttr::default()
        };
        // SAFETY: frame and context outlive the call, which reads no more than their lengths.
        unsafe { bpf(uapi::PROG_TEST_RUN, &mut attr) }.context("a test run")?;
        Ok((Duration::from_nanos(attr.duration.into()), attr.retval))
    }
}

fn skb_context(ifindex: u32) -> Vec<u8> {
    let mut context = vec![0; uapi::SKB_LEN];
    context[uapi::SKB_INGRESS_IFINDEX..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    context[uapi::SKB_IFINDEX..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

fn xdp_context(frame_len: usize, ifindex: u32) -> Vec<u8> {
    let mut context = vec![0; uapi::XDP_LEN];
    let len = u32::try_from(frame_len).unwrap_or(u32::MAX);
    context[uapi::XDP_DATA_END..][..4].copy_from_slice(&len.to_ne_bytes());
    context[uapi::XDP_INGRESS_IFINDEX..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

fn restoring(restore: &Restore<'_>, jump: RawFd) -> Vec<Insn> {
    use asm::{R0, R1, R2, R3, R6};
    let mut program = vec![asm::mov(R6, R1)];
    match *restore {
        Restore::Head { len, kept, another_flow } => take_head_off(&mut program, (len, kept), another_flow),
        Restore::Bytes { first, tunnel } => {
            write_anew(&mut program, first);
            if let Some(tunnel) = tunnel {
                arrive_by(&mut program, tunnel);
            }
        }
    }
    program.push(asm::mov(R1, R6));
    program.extend(asm::load_map(R2, jump));
    program.extend([asm::mov_number(R3, 0), asm::call(uapi::TAIL_CALL)]);
    // Reached only if there is nothing to jump to: an "aborted", which no walk expects.
    program.extend([asm::mov_number(R0, 0), asm::exit()]);
    program
}

fn take_head_off(program: &mut Vec<Insn>, (len, kept): (usize, usize), another_flow: bool) {
    use asm::{R1, R2, R3, R4, R6};
    let [len, kept] = [len, kept].map(|len| i32::try_from(len).expect("a header's length"));
    if len > 0 {
        program.extend([
            asm::load_word(R3, R6, 0),
            asm::load_word(R2, R6, 4),
            asm::add_number(R3, kept),
            asm::skip_if_greater(R2, R3, 1),
            asm::skip(3),
        ]);
    }
    program.extend([asm::mov(R1, R6), asm::mov_number(R2, len), asm::call(uapi::XDP_ADJUST_HEAD)]);
    if another_flow {
        // The client's address counts up: no run before had it.
        program.extend([
            asm::load_word(R1, R6, 0),
            asm::load_word(R2, R6, 4),
            asm::mov(R3, R1),
            asm::add_number(R3, i32::from(SOURCE_OFFSET) + 4),
            asm::skip_if_greater(R3, R2, 3),
            asm::load_word(R4, R1, SOURCE_OFFSET),
            asm::add_number(R4, 1),
            asm::store_word(R1, SOURCE_OFFSET, R4),
        ]);
    }
}

fn write_anew(program: &mut Vec<Insn>, first: &[u8]) {
    use asm::{R1, R2, R3, R4, R5, R6, R10};
    let len = i16::try_from(first.len()).expect("headers are short");
    for (offset, word) in (0..).step_by(4).zip(first.chunks_exact(4)) {
        let number = i32::from_ne_bytes(word.try_into().expect("four bytes"));
        program.push(asm::store_number(R10, offset - len, number));
    }
    program.extend([asm::mov(R1, R6), asm::mov_number(R2, 0), asm::mov(R3, R10)]);
    program.extend([asm::add_number(R3, -i32::from(len)), asm::mov_number(R4, len.into())]);
    program.extend([asm::mov_number(R5, 0), asm::call(uapi::SKB_STORE_BYTES)]);
}

/// The kernel tells the tunnel's local address as the remote one to who asks: of an arrived packet it is the sender's.
fn arrive_by(program: &mut Vec<Insn>, tunnel: Tunnel) {
    use asm::{R1, R2, R3, R4, R6, R10};
    let len = uapi::TUNNEL_KEY_LEN;
    program.extend((0..len).step_by(4).map(|offset| {
        let number = match offset {
            0 => tunnel.vni,
            uapi::TUNNEL_KEY_LOCAL => tunnel.remote.to_u32(),
            _ => 0,
        };
        asm::store_number(R10, offset - len, number.cast_signed())
    }));
    program.extend([asm::mov(R1, R6), asm::mov(R2, R10), asm::add_number(R2, -i32::from(len))]);
    program.extend([
        asm::mov_number(R3, len.into()),
        asm::mov_number(R4, 0),
        asm::call(uapi::SKB_SET_TUNNEL_KEY),
    ]);
}

fn nothing(kind: Kind) -> [Insn; 2] {
    let verdict = match kind {
        Kind::Xdp => uapi::XDP_PASS,
        Kind::Tc => uapi::TC_ACT_UNSPEC,
    };
    [asm::mov_number(asm::R0, verdict), asm::exit()]
}

fn counting(counters: RawFd) -> Vec<Insn> {
    use asm::{R0, R1, R2, R10};
    let received = i16::try_from(offset_of!(CounterRow, received)).expect("a short row");
    let forwarded = i16::try_from(offset_of!(CounterRow, forwarded)).expect("a short row");
    let mut program = vec![asm::store_number(R10, -4, 0), asm::mov(R2, R10), asm::add_number(R2, -4)];
    program.extend(asm::load_map(R1, counters));
    program.extend([asm::call(uapi::MAP_LOOKUP_ELEM), asm::skip_if_zero(R0, 6)]);
    for offset in [received, forwarded] {
        program.extend([
            asm::load_long(R1, R0, offset),
            asm::add_number(R1, 1),
            asm::store_long(R0, offset, R1),
        ]);
    }
    program.extend(nothing(Kind::Xdp));
    program
}

#[repr(C)]
#[derive(Default)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdateAttr {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// # Safety
///
/// `attr` is what `command` takes, and what it points to is there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the caller's promise; the size is that of the value.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(libc::c_int::try_from(result).unwrap_or(-1)) }
}

/// A program array whose first element is `program`.
fn jump_table(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut create =
        MapCreateAttr { map_type: uapi::MAP_TYPE_PROG_ARRAY, key_size: 4, value_size: 4, max_entries: 1 };
    // SAFETY: the attribute has no pointers; a descriptor that is returned is ours alone.
    let table = unsafe { OwnedFd::from_raw_fd(bpf(uapi::MAP_CREATE, &mut create)?) };
    let (key, value) = (0_u32, program.as_raw_fd());
    let mut update = MapUpdateAttr {
        map_fd: table.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: std::ptr::from_ref(&key) as u64,
        value: std::ptr::from_ref(&value) as u64,
        flags: 0,
    };
    // SAFETY: key and value are there, four bytes each as the map was made.
    unsafe { bpf(uapi::MAP_UPDATE_ELEM, &mut update)? };
    Ok(table)
}

fn load(kind: Kind, insns: &[Insn]) -> io::Result<OwnedFd> {
    let (prog_type, expected_attach_type, prog_flags) = match kind {
        Kind::Xdp => (uapi::PROG_TYPE_XDP, uapi::ATTACH_XDP, uapi::XDP_HAS_FRAGS),
        Kind::Tc => (uapi::PROG_TYPE_SCHED_CLS, 0, 0),
    };
    let mut log = vec![0_u8; 4096];
    let mut attr = ProgLoadAttr {
        prog_type,
        insn_cnt: u32::try_from(insns.len()).unwrap_or(u32::MAX),
        insns: insns.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len()).unwrap_or(0),
        log_buf: log.as_mut_ptr() as u64,
        prog_flags,
        expected_attach_type,
        ..ProgLoadAttr::default()
    };
    // SAFETY: instructions, licence and log are there, with the lengths said; a descriptor that is returned is ours alone.
    let loaded = unsafe { bpf(uapi::PROG_LOAD, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) };
    loaded.map_err(|error| {
        let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
        io::Error::other(format!("{error}: {}", String::from_utf8_lossy(text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: [u8; 100] = [0; 100];

    fn verdict(replay: &Replay) -> u32 {
        replay.run(&FRAME, 0, 1000).unwrap().1
    }

    #[test]
    fn programs_run_after_every_kind_of_restoring() {
        let head = Restore::Head { len: 0, kept: FRAME.len(), another_flow: true };
        let tunnel = Some(Tunnel { remote: Ip4([192, 0, 2, 1]), vni: 4096 });
        let bytes = Restore::Bytes { first: &FRAME[..52], tunnel };

        let passes = [
            Replay::of_nothing(Kind::Xdp, None),
            Replay::of_nothing(Kind::Xdp, Some(&head)),
            Replay::of_counting(&head),
        ];
        for replay in passes {
            assert_eq!(verdict(&replay.unwrap()), uapi::XDP_PASS.cast_unsigned());
        }
        for restore in [None, Some(&bytes)] {
            let replay = Replay::of_nothing(Kind::Tc, restore).unwrap();
            assert_eq!(verdict(&replay), uapi::TC_ACT_UNSPEC.cast_unsigned());
        }
    }

    /// One that passes the frame as it is finds it whole each time.
    #[test]
    fn only_what_was_put_in_front_is_taken_off() {
        let head = Restore::Head { len: 50, kept: 50, another_flow: false };
        let mut is_long = vec![asm::load_word(asm::R2, asm::R1, 0), asm::load_word(asm::R3, asm::R1, 4)];
        is_long.extend([
            asm::add_number(asm::R2, 49),
            asm::mov_number(asm::R0, uapi::XDP_PASS),
            asm::skip_if_greater(asm::R3, asm::R2, 1),
            asm::mov_number(asm::R0, 0),
            asm::exit(),
        ]);
        let program = load(Kind::Xdp, &is_long).unwrap();
        let replay = Replay::of(program.as_fd(), &head).unwrap();
        assert_eq!(verdict(&replay), uapi::XDP_PASS.cast_unsigned());
    }

    #[test]
    fn a_program_for_another_hook_is_refused() {
        let head = Restore::Head { len: 0, kept: FRAME.len(), another_flow: false };
        let tc = load(Kind::Tc, &nothing(Kind::Tc)).unwrap();
        assert!(Replay::of(tc.as_fd(), &head).is_err());
    }
}
