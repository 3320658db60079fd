//! Stand-ins for the helpers by which a program acts on the world or asks it: each call in a program's instructions becomes
//! a call of a small function at the program's end, in place. One that acts notes its arguments and goes on to the helper;
//! one that asks answers what the test wants. So a run without a network shows where a packet would go, and is the same
//! each time. Nothing else of the program is touched.

use std::mem::offset_of;

use aya_obj::generated::bpf_insn;

/// What a helper was called with.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct Note {
    pub n_calls: u64,
    pub arguments: [u64; 3],
    /// Not 0: the helper is not called, and this is its result.
    pub refusal: i64,
}

/// What programs and test tell each other, in memory that both see.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct Slate {
    pub redirect: Note,
    pub redirect_peer: Note,
    pub redirect_neigh: Note,
    /// Tunnel id, remote end, flags.
    pub set_tunnel: Note,
    pub change_type: Note,
    pub change_tail: Note,
    pub set_retval: Note,
    /// Interface, source and destination that were looked up.
    pub fib_lookup: Note,
    pub netns_cookie: u64,
    pub socket_cookie: u64,
    pub has_tunnel: u32,
    pub tunnel_vni: u32,
    /// As a number.
    pub tunnel_remote: u32,
    /// The last random number.
    pub random: u32,
    /// The flow's hash.
    pub hash: u32,
    pub fib_result: u32,
    pub fib_ifindex: u32,
    /// As the kernel calls `__be32`.
    pub fib_gateway: u32,
    pub fib_mtu: u32,
    /// Source and destination MAC of the next hop.
    pub fib_macs: [u8; 12],
    /// Not 0: the frame is cut to this length before the program sees it.
    pub cut_to: u32,
    /// Not 0: a socket takes what comes by IPv6, by IPv4.
    pub listens6: u32,
    pub listens4: u32,
}

/// The programs' random numbers here: a linear congruential sequence (Knuth, TAOCP volume 2, section 3.3.4, line 16).
pub const MULTIPLIER: i32 = 1_664_525;
pub const INCREMENT: i32 = 1_013_904_223;

/// An instruction: code, destination, source, offset, immediate.
fn op(code: u8, destination: u8, source: u8, offset: usize, immediate: i32) -> u64 {
    let [low, high] = u16::try_from(offset).unwrap().to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([code, destination | source << 4, low, high, a, b, c, d])
}

const LOAD_32: u8 = 0x61;
const LOAD_16: u8 = 0x69;
const LOAD_64: u8 = 0x79;
const STORE_32: u8 = 0x63;
const STORE_16: u8 = 0x6b;
const STORE_64: u8 = 0x7b;
const ADD: u8 = 0x07;
const ADD_32: u8 = 0x04;
const MULTIPLY_32: u8 = 0x24;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const JUMP_IF_EQUAL: u8 = 0x15;
/// The same, with 0.
const JUMP_IF_ZERO: u8 = JUMP_IF_EQUAL;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// A call to a function of the program.
const PSEUDO_CALL: u8 = 1;
/// Registers that a function may use without harm to its caller.
const SLATE: u8 = 6;
const SCRATCH: u8 = 7;

/// Register 6 points into the slate.
fn slate(map: i32, offset: usize) -> [u64; 2] {
    const PSEUDO_MAP_VALUE: u8 = 2;
    [op(0x18, SLATE, PSEUDO_MAP_VALUE, 0, map), op(0, 0, 0, 0, i32::try_from(offset).unwrap())]
}

/// Where an argument of a helper comes from.
#[derive(Clone, Copy)]
enum Argument {
    Register(u8),
    /// 32 bits behind the pointer in this register.
    Behind(u8, usize),
    /// The same, or nothing if the register is 0.
    BehindIfAny(u8, usize),
}

/// Notes the arguments, and calls the helper unless it is to refuse.
fn acts(map: i32, offset: usize, helper: i32, arguments: &[Argument]) -> Vec<u64> {
    let mut code = slate(map, offset).to_vec();
    code.extend([
        op(LOAD_64, SCRATCH, SLATE, offset_of!(Note, n_calls), 0),
        op(ADD, SCRATCH, 0, 0, 1),
        op(STORE_64, SLATE, SCRATCH, offset_of!(Note, n_calls), 0),
    ]);
    for (index, argument) in arguments.iter().enumerate() {
        let to = offset_of!(Note, arguments) + 8 * index;
        match *argument {
            Argument::Register(register) => code.push(op(STORE_64, SLATE, register, to, 0)),
            Argument::Behind(register, from) => {
                code.extend([op(LOAD_32, SCRATCH, register, from, 0), op(STORE_64, SLATE, SCRATCH, to, 0)]);
            }
            Argument::BehindIfAny(register, from) => code.extend([
                op(JUMP_IF_ZERO, register, 0, 2, 0),
                op(LOAD_32, SCRATCH, register, from, 0),
                op(STORE_64, SLATE, SCRATCH, to, 0),
            ]),
        }
    }
    code.extend([
        op(LOAD_64, SCRATCH, SLATE, offset_of!(Note, refusal), 0),
        op(JUMP_IF_ZERO, SCRATCH, 0, 2, 0),
        op(MOVE_REGISTER, 0, SCRATCH, 0, 0),
        op(EXIT, 0, 0, 0, 0),
    ]);
    code.extend([op(CALL, 0, 0, 0, helper), op(EXIT, 0, 0, 0, 0)]);
    code
}

/// As [`acts`], for a helper that only its own hook has.
fn notes(map: i32, offset: usize, arguments: &[Argument]) -> Vec<u64> {
    let mut code = acts(map, offset, 0, arguments);
    let call = code.len() - 2;
    code[call] = op(MOVE, 0, 0, 0, 0);
    code
}

fn answers_32(map: i32, offset: usize) -> Vec<u64> {
    let mut code = slate(map, offset).to_vec();
    code.extend([op(LOAD_32, 0, SLATE, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    code
}

fn answers_64(map: i32, offset: usize) -> Vec<u64> {
    let mut code = slate(map, offset).to_vec();
    code.extend([op(LOAD_64, 0, SLATE, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    code
}

fn random(map: i32) -> Vec<u64> {
    let mut code = slate(map, offset_of!(Slate, random)).to_vec();
    code.extend([
        op(LOAD_32, 0, SLATE, 0, 0),
        op(MULTIPLY_32, 0, 0, 0, MULTIPLIER),
        op(ADD_32, 0, 0, 0, INCREMENT),
        op(STORE_32, SLATE, 0, 0, 0),
        op(EXIT, 0, 0, 0, 0),
    ]);
    code
}

/// `bpf_skb_get_tunnel_key`: the id is the key's first member, the remote end its second.
fn tunnel(map: i32) -> Vec<u64> {
    const KEY: u8 = 2;
    let vni = offset_of!(Slate, tunnel_vni) - offset_of!(Slate, has_tunnel);
    let remote = offset_of!(Slate, tunnel_remote) - offset_of!(Slate, has_tunnel);
    let mut code = slate(map, offset_of!(Slate, has_tunnel)).to_vec();
    code.extend([
        op(MOVE, 0, 0, 0, -libc::EINVAL),
        op(LOAD_32, SCRATCH, SLATE, 0, 0),
        op(JUMP_IF_ZERO, SCRATCH, 0, 5, 0),
        op(LOAD_32, SCRATCH, SLATE, vni, 0),
        op(STORE_32, KEY, SCRATCH, 0, 0),
        op(LOAD_32, SCRATCH, SLATE, remote, 0),
        op(STORE_32, KEY, SCRATCH, 4, 0),
        op(MOVE, 0, 0, 0, 0),
        op(EXIT, 0, 0, 0, 0),
    ]);
    code
}

/// `bpf_fib_lookup` with `struct bpf_fib_lookup` of linux/bpf.h.
fn next_hop(map: i32) -> Vec<u64> {
    const LOOKUP: u8 = 2;
    const MTU: usize = 6;
    const IFINDEX: usize = 8;
    const SOURCE: usize = 16;
    const DESTINATION: usize = 32;
    const MACS: usize = 52;
    let behind = |offset: usize| offset - offset_of!(Slate, fib_result);
    let asked = [IFINDEX, SOURCE, DESTINATION].map(|offset| Argument::Behind(LOOKUP, offset));
    let mut code = notes(map, offset_of!(Slate, fib_lookup), &asked);
    code.truncate(code.len() - 2);
    code.extend(slate(map, offset_of!(Slate, fib_result)));
    code.extend([
        op(LOAD_32, SCRATCH, SLATE, behind(offset_of!(Slate, fib_ifindex)), 0),
        op(STORE_32, LOOKUP, SCRATCH, IFINDEX, 0),
        op(LOAD_32, SCRATCH, SLATE, behind(offset_of!(Slate, fib_gateway)), 0),
        op(STORE_32, LOOKUP, SCRATCH, DESTINATION, 0),
        op(LOAD_32, SCRATCH, SLATE, behind(offset_of!(Slate, fib_mtu)), 0),
        op(STORE_16, LOOKUP, SCRATCH, MTU, 0),
    ]);
    for offset in (0..12).step_by(2) {
        code.extend([
            op(LOAD_16, SCRATCH, SLATE, behind(offset_of!(Slate, fib_macs)) + offset, 0),
            op(STORE_16, LOOKUP, SCRATCH, MACS + offset, 0),
        ]);
    }
    code.extend([op(LOAD_32, 0, SLATE, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    code
}

/// `bpf_sk_lookup_udp` and its kin: what is asked by a tuple of this length is of IPv6.
fn socket(map: i32) -> Vec<u64> {
    const LEN: u8 = 3;
    const LEN6: i32 = 36;
    let behind = offset_of!(Slate, listens4) - offset_of!(Slate, listens6);
    let mut code = slate(map, offset_of!(Slate, listens6)).to_vec();
    code.extend([
        op(LOAD_32, 0, SLATE, 0, 0),
        op(JUMP_IF_EQUAL, LEN, 0, 1, LEN6),
        op(LOAD_32, 0, SLATE, behind, 0),
        op(EXIT, 0, 0, 0, 0),
    ]);
    code
}

/// What goes in front of a tc program: cuts its frame if it is to.
pub fn cut(map: i32) -> Vec<u64> {
    const CHANGE_TAIL: i32 = 38;
    const CONTEXT: u8 = 8;
    let mut code = vec![op(MOVE_REGISTER, CONTEXT, 1, 0, 0)];
    code.extend(slate(map, offset_of!(Slate, cut_to)));
    code.extend([
        op(LOAD_32, 2, SLATE, 0, 0),
        op(JUMP_IF_ZERO, 2, 0, 2, 0),
        op(MOVE, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, CHANGE_TAIL),
        op(MOVE_REGISTER, 1, CONTEXT, 0, 0),
    ]);
    code
}

/// The stand-in for a helper (numbers of linux/bpf.h); `None` for one that is left as it is.
fn stand_in(helper: i32, map: i32) -> Option<Vec<u64>> {
    use Argument::{Behind, BehindIfAny, Register};
    let note = |offset, arguments: &[Argument]| Some(acts(map, offset, helper, arguments));
    match helper {
        7 => Some(random(map)),
        20 => Some(tunnel(map)),
        21 => note(offset_of!(Slate, set_tunnel), &[Behind(2, 0), Behind(2, 4), Register(4)]),
        23 => note(offset_of!(Slate, redirect), &[Register(1), Register(2)]),
        32 => note(offset_of!(Slate, change_type), &[Register(2)]),
        34 => Some(answers_32(map, offset_of!(Slate, hash))),
        38 => note(offset_of!(Slate, change_tail), &[Register(2)]),
        46 => Some(answers_64(map, offset_of!(Slate, socket_cookie))),
        69 => Some(next_hop(map)),
        85 | 99 => Some(socket(map)),
        86 => Some(vec![op(MOVE, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]),
        122 => Some(answers_64(map, offset_of!(Slate, netns_cookie))),
        152 => note(offset_of!(Slate, redirect_neigh), &[Register(1), Register(4), BehindIfAny(2, 4)]),
        155 => note(offset_of!(Slate, redirect_peer), &[Register(1), Register(2)]),
        187 => Some(notes(map, offset_of!(Slate, set_retval), &[Register(1)])),
        _ => None,
    }
}

/// A program's instructions with stand-ins; `map` is the descriptor of the slate's array.
pub fn instrument(instructions: &[bpf_insn], map: i32) -> Vec<u64> {
    let mut code: Vec<u64> = instructions.iter().copied().map(raw).collect();
    let mut places: Vec<(i32, usize)> = Vec::new();
    for position in 0..instructions.len() {
        let [kind, registers, _, _, a, b, c, d] = code[position].to_le_bytes();
        if kind != CALL || registers >> 4 != 0 {
            continue;
        }
        let helper = i32::from_le_bytes([a, b, c, d]);
        let place = places.iter().find(|(known, _)| *known == helper).map(|(_, place)| *place);
        let place = place.or_else(|| {
            let function = stand_in(helper, map)?;
            places.push((helper, code.len()));
            code.extend(function);
            places.last().map(|(_, place)| *place)
        });
        if let Some(place) = place {
            let distance = i32::try_from(place - position - 1).unwrap();
            code[position] = op(CALL, 0, PSEUDO_CALL, 0, distance);
        }
    }
    code
}

fn raw(instruction: bpf_insn) -> u64 {
    let registers = instruction.dst_reg() | instruction.src_reg() << 4;
    let [low, high] = instruction.off.to_le_bytes();
    let [a, b, c, d] = instruction.imm.to_le_bytes();
    u64::from_le_bytes([instruction.code, registers, low, high, a, b, c, d])
}
