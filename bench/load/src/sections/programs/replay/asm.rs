//! Instructions by the names that the kernel's documentation gives them (`standardization/instruction-set.rst`).

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

pub const R0: u8 = 0;
pub const R1: u8 = 1;
pub const R2: u8 = 2;
pub const R3: u8 = 3;
pub const R4: u8 = 4;
pub const R5: u8 = 5;
pub const R6: u8 = 6;
/// The stack's top.
pub const R10: u8 = 10;

const fn insn(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers: destination | (source << 4), offset, immediate }
}

pub const fn mov(destination: u8, source: u8) -> Insn {
    insn(0xbf, destination, source, 0, 0)
}

pub const fn mov_number(destination: u8, number: i32) -> Insn {
    insn(0xb7, destination, 0, 0, number)
}

pub const fn add_number(destination: u8, number: i32) -> Insn {
    insn(0x07, destination, 0, 0, number)
}

pub const fn load_word(destination: u8, base: u8, offset: i16) -> Insn {
    insn(0x61, destination, base, offset, 0)
}

pub const fn store_word(base: u8, offset: i16, source: u8) -> Insn {
    insn(0x63, base, source, offset, 0)
}

pub const fn store_number(base: u8, offset: i16, number: i32) -> Insn {
    insn(0x62, base, 0, offset, number)
}

pub const fn load_long(destination: u8, base: u8, offset: i16) -> Insn {
    insn(0x79, destination, base, offset, 0)
}

pub const fn store_long(base: u8, offset: i16, source: u8) -> Insn {
    insn(0x7b, base, source, offset, 0)
}

pub const fn skip_if_zero(register: u8, n_insns: i16) -> Insn {
    insn(0x15, register, 0, n_insns, 0)
}

pub const fn skip_if_greater(a: u8, b: u8, n_insns: i16) -> Insn {
    insn(0x2d, a, b, n_insns, 0)
}

pub const fn skip(n_insns: i16) -> Insn {
    insn(0x05, 0, 0, n_insns, 0)
}

pub const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}

pub const fn exit() -> Insn {
    insn(0x95, 0, 0, 0, 0)
}

/// A map by its descriptor (`BPF_PSEUDO_MAP_FD`), two instructions long.
pub const fn load_map(destination: u8, fd: i32) -> [Insn; 2] {
    [insn(0x18, destination, 1, 0, fd), insn(0, 0, 0, 0, 0)]
}
