//! The bpf(2) commands that the model's kernel side needs: maps as bytes, programs as instructions.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const MAP_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const MAP_TAKE: libc::c_int = 21;
const PROG_TEST_RUN: libc::c_int = 10;

/// Program types of linux/bpf.h.
pub const SCHED_CLS: u32 = 3;
pub const XDP: u32 = 6;
pub const SYSCALL: u32 = 31;
/// What programs of type [`SYSCALL`] must say.
const F_SLEEPABLE: u32 = 1 << 4;

/// Map types.
pub const ARRAY: u32 = 2;
pub const PERCPU_ARRAY: u32 = 6;
pub const LRU_HASH: u32 = 9;
pub const QUEUE: u32 = 22;

/// Lets user space map the array's memory.
pub const F_MMAPABLE: u32 = 1 << 10;

/// What a map is made of.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MapShape {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadAttr {
    kind: u32,
    n_instructions: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `bpf_attr.test`.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    program: u32,
    code: u32,
    in_size: u32,
    out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// # Safety
/// The pointers inside `attr` must be valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the size is that of the attribute; the caller vouches for its pointers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(result: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us alone.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(result).unwrap()) }
}

pub fn number(fd: &OwnedFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap()
}

fn address<T>(bytes: &[T]) -> u64 {
    bytes.as_ptr().addr() as u64
}

fn address_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr().expose_provenance() as u64
}

pub fn create_map(shape: MapShape) -> OwnedFd {
    let mut attr = shape;
    // SAFETY: no pointers.
    own(unsafe { bpf(MAP_CREATE, &mut attr) }.unwrap())
}

/// One element command; false if there is no such element.
fn element(command: libc::c_int, map: &OwnedFd, key: u64, value: u64) -> bool {
    let mut attr = ElementAttr { map: number(map), pad: 0, key, value, flags: 0 };
    // SAFETY: the callers' slices have the sizes of the map's keys and values.
    match unsafe { bpf(command, &mut attr) } {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => panic!("bpf command {command}: {error}"),
    }
}

pub fn update(map: &OwnedFd, key: &[u8], value: &[u8]) {
    element(MAP_UPDATE, map, address(key), address(value));
}

pub fn delete(map: &OwnedFd, key: &[u8]) {
    element(MAP_DELETE, map, address(key), 0);
}

/// Takes all that is in a queue of values of this size, the oldest first.
pub fn drain(queue: &OwnedFd, value_size: usize) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| {
        let mut value = vec![0_u8; value_size];
        element(MAP_TAKE, queue, 0, address_mut(&mut value)).then_some(value)
    })
    .collect()
}

/// All keys of a map whose keys have this size.
pub fn keys(map: &OwnedFd, key_size: usize) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut next = vec![0_u8; key_size];
        let last = keys.last().map_or(0, |key| address(key));
        if !element(MAP_NEXT_KEY, map, last, address_mut(&mut next)) {
            return keys;
        }
        keys.push(next);
    }
}

/// All rows of a map whose keys and values have these sizes.
pub fn rows(map: &OwnedFd, key_size: usize, value_size: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let value_of = |key: Vec<u8>| {
        let mut value = vec![0_u8; value_size];
        assert!(element(MAP_LOOKUP, map, address(&key), address_mut(&mut value)), "nobody else writes here");
        (key, value)
    };
    keys(map, key_size).into_iter().map(value_of).collect()
}

/// Loads a program; panics with the verifier's last words if it is refused.
pub fn load(kind: u32, instructions: &[u64], name: &str) -> OwnedFd {
    let mut attr = LoadAttr {
        kind,
        n_instructions: u32::try_from(instructions.len()).unwrap(),
        instructions: address(instructions),
        license: c"GPL".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: if kind == SYSCALL { F_SLEEPABLE } else { 0 },
    };
    // SAFETY: instructions and licence outlive the call.
    if let Ok(fd) = unsafe { bpf(PROG_LOAD, &mut attr) } {
        return own(fd);
    }
    let mut log = vec![0_u8; 16 << 20];
    (attr.log_level, attr.log_size) = (1, u32::try_from(log.len()).unwrap());
    attr.log = address_mut(&mut log);
    // SAFETY: as above, and the log has the size given.
    let error = unsafe { bpf(PROG_LOAD, &mut attr) }.unwrap_err();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.trim_end_matches('\0').lines().collect();
    panic!("{name}: {error}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
}

/// A packet program's verdict; `out` gets the bytes, and their number is returned.
pub fn run_packet(program: &OwnedFd, data: &[u8], context: &[u8], out: &mut [u8]) -> (u32, usize) {
    let mut attr = RunAttr {
        program: number(program),
        in_size: u32::try_from(data.len()).unwrap(),
        out_size: u32::try_from(out.len()).unwrap(),
        data_in: address(data),
        data_out: address_mut(out),
        repeat: 1,
        context_in_size: u32::try_from(context.len()).unwrap(),
        context_in: address(context),
        ..RunAttr::default()
    };
    // SAFETY: the slices outlive the call and have the sizes given.
    let result = unsafe { bpf(PROG_TEST_RUN, &mut attr) };
    result.unwrap_or_else(|error| panic!("{error}: {} bytes, {context:?}", data.len()));
    (attr.code, usize::try_from(attr.out_size).unwrap())
}

/// A program over plain memory, which it may change.
pub fn run_memory(program: &OwnedFd, memory: &mut [u8]) -> u32 {
    let mut attr = RunAttr {
        program: number(program),
        context_in_size: u32::try_from(memory.len()).unwrap(),
        context_in: address_mut(memory),
        ..RunAttr::default()
    };
    // SAFETY: the memory outlives the call and has the size given.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }.unwrap();
    attr.code
}
