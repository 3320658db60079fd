//! What the kernel limits of a program: how many instructions its verifier looks at, and the stack. With `MESH_BUDGETS=FILE` the
//! figures go to a file, from which `cargo xtask ebpf --budgets` makes `docs/design/programs.md`.
//!
//! Stacks are counted as kernel 6.1 does: for each function that is being run its own frame, rounded up to 32 bytes and 32 at
//! least; 512 bytes in all. Programs are made of functions one after the other, so that their frames don't add up.
#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;

use aya_obj::generated::bpf_insn;
use aya_obj::{Object, ProgramSection};
use dataplane_kernel::bpf::Programs;
use ebpf_abi::{ABI_VERSION, ProgramId};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh.o"));

/// Instructions that the verifier looks at, over all ways through a program: half of what it does before it refuses
/// (`BPF_COMPLEXITY_LIMIT_INSNS`, a million), as each kernel and compiler counts to something else.
const MAX_VERIFIED: u32 = 500_000;
/// Bytes of all frames.
const MAX_STACK: usize = 512;
const FRAME_UNIT: usize = 32;

/// BPF instructions (RFC 9669 section 3): the class is in the first byte. Loads have the frame as their source, stores as their
/// destination.
const LOAD: u8 = 1;
const STORES: [u8; 2] = [2, 3];
const FRAME: u8 = 10;
const CALL: u8 = 0x85;
/// A call of a function of the program.
const PSEUDO_CALL: u8 = 1;

/// An addition to 64 bits of memory in one instruction (RFC 9669 section 5.3): the operation is in `imm`.
const ATOMIC_LONG: u8 = 0xdb;
const ATOMIC_ADD: i32 = 0;

/// How far below the top of its frame an instruction reaches.
fn reach(instruction: bpf_insn) -> usize {
    let class = instruction.code & 7;
    let is_of_frame = (class == LOAD && instruction.src_reg() == FRAME)
        || (STORES.contains(&class) && instruction.dst_reg() == FRAME);
    if is_of_frame { usize::try_from(-instruction.off).unwrap_or(0) } else { 0 }
}

/// The position that an instruction calls, if it calls a function of the program.
fn callee(code: &[bpf_insn], position: usize) -> Option<usize> {
    let instruction = &code[position];
    let is_call = instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL;
    is_call.then(|| (position + 1).checked_add_signed(isize::try_from(instruction.imm).unwrap()).unwrap())
}

/// Bytes that the function that begins at `start` takes, with the deepest of those that it calls.
fn depth(code: &[bpf_insn], starts: &BTreeSet<usize>, start: usize) -> usize {
    let end = starts.range(start + 1..).next().copied().unwrap_or(code.len());
    let own = code[start..end].iter().copied().map(reach).max().unwrap_or(0);
    let called = (start..end).filter_map(|position| callee(code, position));
    let deepest = called.map(|callee| depth(code, starts, callee)).max().unwrap_or(0);
    own.max(1).next_multiple_of(FRAME_UNIT) + deepest
}

/// A program as it is in the object.
struct Size {
    n_instructions: usize,
    stack_bytes: usize,
}

fn sizes() -> BTreeMap<String, Size> {
    let mut object = Object::parse(OBJECT).unwrap();
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&text).unwrap();
    let mut n_calls = 0;
    let mut size = |code: &[bpf_insn]| {
        let callees = (0..code.len()).filter_map(|position| callee(code, position));
        let starts: BTreeSet<usize> = callees.chain([0]).collect();
        n_calls += starts.len() - 1;
        Size { n_instructions: code.len(), stack_bytes: depth(code, &starts, 0) }
    };
    let code = |program: &aya_obj::Program| &object.functions[&program.function_key()].instructions[..];
    let codes = object.programs.iter().map(|(name, program)| (name.clone(), code(program)));
    let sizes = codes.map(|(name, code)| (name, size(code))).collect();
    assert!(n_calls > 5, "the object was not understood");
    sizes
}

#[test]
fn programs_are_within_what_kernels_take() {
    let sizes = sizes();
    let mut programs = Programs::load_private().unwrap();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut table = format!("ABI {ABI_VERSION}\t{}\n", kernel.trim());
    for program in ProgramId::ALL {
        let name = program.label();
        let verified = programs.get(*program).unwrap().info().unwrap().verified_instruction_count().unwrap();
        let Size { n_instructions, stack_bytes } = sizes[name];
        writeln!(table, "{name}\t{n_instructions}\t{stack_bytes}\t{verified}").unwrap();
        assert!(stack_bytes <= MAX_STACK, "{name} takes {stack_bytes} bytes: kernel 6.1 would refuse it");
        assert!(verified <= MAX_VERIFIED, "{name}: the verifier looks at {verified} instructions");
    }
    if let Some(file) = std::env::var_os("MESH_BUDGETS") {
        std::fs::write(file, table).unwrap();
    }
}

/// They may be preempted by each other on their CPU: an addition in three instructions would lose counts.
#[test]
fn programs_of_sockets_count_in_one_instruction() {
    let object = Object::parse(OBJECT).unwrap();
    for program in ProgramId::ALL {
        let found = &object.programs[program.label()];
        let is_of_packets =
            matches!(found.section, ProgramSection::Xdp { .. } | ProgramSection::SchedClassifier);
        let code = &object.functions[&found.function_key()].instructions;
        let is_count =
            |instruction: &&bpf_insn| (instruction.code, instruction.imm) == (ATOMIC_LONG, ATOMIC_ADD);
        let n_counts = code.iter().filter(is_count).count();
        assert_eq!(n_counts >= 2, !is_of_packets, "{}: {n_counts}", program.label());
    }
}
