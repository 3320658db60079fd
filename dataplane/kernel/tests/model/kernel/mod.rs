//! The programs of the object as this build has it, in the kernel, over tables of their own.
//!
//! User space's tables are written by the crate's own code, through pins that go when the machine does. What the programs
//! write is kept in small tables that are read and emptied quickly, and which a test can fill. The socket programs' hook has
//! no `BPF_PROG_TEST_RUN`: they are loaded as programs over plain memory, which is what their context is to them.

mod fill;
mod stand_ins;
mod sys;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::Pod;
use aya::maps::MapData;
use aya_obj::{Object, ProgramSection};
use dataplane_kernel::bpf::{Bpf, PinDir, Tables};
use ebpf_abi::names::map;
use ebpf_abi::{CounterRow, GateRow, ProgramId};

use crate::frame::bytes_of;
use crate::packet::{Packet, SocketCall};
pub use stand_ins::{INCREMENT, MULTIPLIER, Slate};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh.o"));

/// Rows of `flows`, `replies` and `vip_flows` here: few, so that they fill up; and few enough for the kernel to count them exactly (it
/// counts roughly when a table has more than 64 rows per CPU).
pub const FLOW_ROWS: u32 = 40;
/// Flows that may be half-open here: fewer than rows, so that the oldest have to make room.
pub const HALF_OPEN_FLOWS: u32 = 36;
/// Rows of the caches here: more than a run makes, so that none is evicted.
const CACHE_ROWS: u32 = 16_384;
/// The kernel runs no tc program over a frame whose network header is cut off. Shorter ones are padded to this, and cut by
/// what runs before the program.
pub const SHORTEST_SKB: usize = 14 + 40;
/// Room for what a program puts in front of a packet.
const HEADROOM: usize = 256;
/// `__sk_buff`, `xdp_md` and `bpf_sock_addr` (linux/bpf.h): sizes and offsets.
const SKB_SIZE: usize = 192;
const SKB_INGRESS_IFINDEX: usize = 36;
const SKB_IFINDEX: usize = 40;
const SKB_GSO_SEGS: usize = 164;
const SKB_GSO_SIZE: usize = 176;
const XDP_SIZE: usize = 24;
const XDP_DATA_END: usize = 4;
const SOCKET_SIZE: usize = 72;
const SOCKET_IP4: usize = 4;
const SOCKET_IP6: usize = 8;
const SOCKET_PORT: usize = 24;
const SOCKET_PROTOCOL: usize = 36;

/// What a program did, as the kernel saw it.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The hook's own action code.
    pub code: u32,
    pub bytes: Vec<u8>,
    pub slate: Slate,
    pub counted: CounterRow,
}

/// The programs of one node, loaded.
pub struct Machine {
    /// What user space writes.
    pub tables: Tables,
    _pins: Pins,
    own: BTreeMap<String, OwnedFd>,
    programs: BTreeMap<ProgramId, OwnedFd>,
    slate: Shared<Slate>,
    counters: Shared<[CounterRow; ebpf_abi::limits::MAX_PROGRAMS as usize]>,
    gate: Shared<GateRow>,
}

impl Machine {
    /// Loads all programs. The calling thread's network namespace is the one whose interfaces packets name.
    pub fn load() -> Self {
        let pins = Pins::new();
        let Bpf { tables, .. } = Bpf::open(&pins.0).unwrap();
        let mut object = Object::parse(OBJECT).unwrap();
        let own: BTreeMap<String, OwnedFd> =
            object.maps.iter().filter_map(|(name, map)| Some((name.clone(), own_map(name, map)?))).collect();
        let pinned = relocate(&mut object, &own, &PinDir::new(&pins.0));
        let slate_map = shared_map(size_of::<Slate>(), 1);
        let slate = Shared::new(&slate_map);
        let programs = load_programs(&object, slate_map.as_raw_fd());
        drop(pinned);
        let (counters, gate) = (Shared::new(&own[map::COUNTERS]), Shared::new(&own[map::GATE]));
        Self { tables, _pins: pins, own, programs, slate, counters, gate }
    }

    /// What the next runs are told.
    pub fn slate(&mut self) -> &mut Slate {
        self.slate.get()
    }

    /// What the gate of new flows has let in.
    pub fn gate(&mut self) -> &mut GateRow {
        self.gate.get()
    }

    pub fn run(&mut self, packet: &Packet) -> Ran {
        let row = packet.program.number() as usize;
        self.begin(row);
        let mut frame = packet.bytes.clone();
        self.slate.get().cut_to = 0;
        if packet.program != ProgramId::MeshXdp && frame.len() < SHORTEST_SKB {
            self.slate.get().cut_to = u32::try_from(frame.len()).unwrap();
            frame.resize(SHORTEST_SKB, 0);
        }
        let mut bytes = vec![0; frame.len() + HEADROOM];
        let program = &self.programs[&packet.program];
        let (code, len) = sys::run_packet(program, &frame, &context(packet), &mut bytes);
        bytes.truncate(len);
        Ran { code, bytes, slate: *self.slate.get(), counted: self.counters.get()[row] }
    }

    /// As [`Machine::run`]; the bytes are the address and port that the socket has then.
    pub fn run_socket(&mut self, call: &SocketCall) -> Ran {
        let row = call.program.number() as usize;
        self.begin(row);
        let mut memory = [0; SOCKET_SIZE];
        let address = call.address.bytes();
        let offset = if address.len() == 4 { SOCKET_IP4 } else { SOCKET_IP6 };
        memory[offset..][..address.len()].copy_from_slice(&address);
        memory[SOCKET_PORT..][..2].copy_from_slice(&call.port.0);
        memory[SOCKET_PROTOCOL] = call.protocol;
        let code = sys::run_memory(&self.programs[&call.program], &mut memory);
        let bytes = [&memory[offset..][..address.len()], &memory[SOCKET_PORT..][..2]].concat();
        Ran { code, bytes, slate: *self.slate.get(), counted: self.counters.get()[row] }
    }

    fn begin(&mut self, row: usize) {
        let slate = self.slate.get();
        for note in [
            &mut slate.redirect,
            &mut slate.redirect_peer,
            &mut slate.redirect_neigh,
            &mut slate.set_tunnel,
            &mut slate.change_type,
            &mut slate.change_tail,
            &mut slate.set_retval,
            &mut slate.fib_lookup,
        ] {
            (note.n_calls, note.arguments) = (0, [0; 3]);
        }
        self.counters.get()[row] = CounterRow::default();
    }

    /// The rows of a table that the programs write.
    pub fn rows<K: Pod + Ord, V: Pod>(&self, name: &str) -> BTreeMap<K, V> {
        let rows = sys::rows(&self.own[name], size_of::<K>(), size_of::<V>());
        rows.iter().map(|(key, value)| (read(key), read(value))).collect()
    }

    pub fn insert<K: Pod, V: Pod>(&mut self, name: &str, key: &K, value: &V) {
        sys::update(&self.own[name], bytes_of(key), bytes_of(value));
    }

    pub fn remove<K: Pod>(&mut self, name: &str, key: &K) {
        sys::delete(&self.own[name], bytes_of(key));
    }

    /// Takes all that is in a queue, the oldest first.
    pub fn drain<V: Pod>(&mut self, name: &str) -> Vec<V> {
        sys::drain(&self.own[name], size_of::<V>()).iter().map(|value| read(value)).collect()
    }

    /// Empties a table that the programs write, whose keys have this type.
    pub fn clear<K: Pod>(&mut self, name: &str) {
        for key in sys::keys(&self.own[name], size_of::<K>()) {
            sys::delete(&self.own[name], &key);
        }
    }
}

/// A directory for pins, which goes with its pins.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("meshd-model-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(PathBuf::from("/sys/fs/bpf").join(name))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let removed = PinDir::new(&self.0).remove_all();
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

/// The small table in place of one that the programs write; `None` if user space writes it.
fn own_map(name: &str, map: &aya_obj::Map) -> Option<OwnedFd> {
    let (key_size, value_size, flags) = (map.key_size(), map.value_size(), map.map_flags());
    let shape =
        |max_entries| sys::MapShape { kind: map.map_type(), key_size, value_size, max_entries, flags };
    if map.map_type() == sys::PERCPU_ARRAY {
        return Some(shared_map(value_size as usize, map.max_entries()));
    }
    if map.map_type() == sys::LRU_HASH {
        return Some(sys::create_map(shape(CACHE_ROWS)));
    }
    if map.map_type() == sys::QUEUE {
        return Some(sys::create_map(shape(HALF_OPEN_FLOWS)));
    }
    if [map::FLOWS, map::REPLIES, map::VIP_FLOWS].contains(&name) {
        return Some(sys::create_map(shape(FLOW_ROWS)));
    }
    if name == map::STAND_INS {
        return Some(sys::create_map(shape(CACHE_ROWS)));
    }
    if map.data().is_empty() {
        return None;
    }
    let constants = sys::create_map(shape(1));
    sys::update(&constants, &0_u32.to_ne_bytes(), map.data());
    Some(constants)
}

/// An array that this process sees in its memory. The runs are one after another: where the kernel has a row per CPU, one
/// row does.
fn shared_map(value_size: usize, max_entries: u32) -> OwnedFd {
    sys::create_map(sys::MapShape {
        kind: sys::ARRAY,
        key_size: 4,
        value_size: u32::try_from(value_size).unwrap(),
        max_entries,
        flags: sys::F_MMAPABLE,
    })
}

/// Puts the tables' descriptors into the instructions: they must stay open until those are loaded.
fn relocate(
    object: &mut Object,
    own: &BTreeMap<String, OwnedFd>,
    pins: &PinDir,
) -> BTreeMap<String, MapData> {
    let maps = std::mem::take(&mut object.maps);
    let pinned: BTreeMap<String, MapData> = maps
        .keys()
        .filter(|name| !own.contains_key(*name))
        .map(|name| (name.clone(), MapData::from_pin(pins.map(name)).unwrap()))
        .collect();
    let descriptor =
        |name: &str| own.get(name).map_or_else(|| pinned[name].fd().as_fd().as_raw_fd(), AsRawFd::as_raw_fd);
    let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let places = maps.iter().map(|(name, map)| (name.as_str(), descriptor(name), map));
    object.relocate_maps(places, &text).unwrap();
    object.relocate_calls(&text).unwrap();
    pinned
}

fn load_programs(object: &Object, slate: i32) -> BTreeMap<ProgramId, OwnedFd> {
    let load = |program: &ProgramId| {
        let name = program.label();
        let found = &object.programs[name];
        let kind = match found.section {
            ProgramSection::Xdp { .. } => sys::XDP,
            ProgramSection::SchedClassifier => sys::SCHED_CLS,
            _ => sys::SYSCALL,
        };
        let function = &object.functions[&found.function_key()];
        let mut code = stand_ins::instrument(&function.instructions, slate);
        if kind == sys::SCHED_CLS {
            code.splice(0..0, stand_ins::cut(slate));
        }
        (*program, sys::load(kind, &code, name))
    };
    ProgramId::ALL.iter().map(load).collect()
}

/// The context of a packet program.
fn context(packet: &Packet) -> Vec<u8> {
    let put = |context: &mut Vec<u8>, offset: usize, value: u32| {
        context[offset..][..4].copy_from_slice(&value.to_ne_bytes());
    };
    if packet.program == ProgramId::MeshXdp {
        // All interfaces 0: loopback's queue stands for the uplink's.
        let mut context = vec![0; XDP_SIZE];
        put(&mut context, XDP_DATA_END, u32::try_from(packet.bytes.len()).unwrap());
        return context;
    }
    let mut context = vec![0; SKB_SIZE];
    put(&mut context, SKB_INGRESS_IFINDEX, packet.ingress_ifindex);
    put(&mut context, SKB_IFINDEX, packet.ifindex);
    if packet.is_aggregate {
        put(&mut context, SKB_GSO_SEGS, 2);
        put(&mut context, SKB_GSO_SIZE, 100);
    }
    context
}

fn read<T: Pod>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: the bytes are a whole T, of which any bytes are some.
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

/// The memory of an array's elements, also seen by the programs: they run only while this thread waits for them.
struct Shared<T>(*mut T);

impl<T> Shared<T> {
    fn new(map: &OwnedFd) -> Self {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping; the array has at least this size.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), size_of::<T>(), access, flags, map.as_raw_fd(), 0) };
        assert_ne!(memory, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(memory.cast())
    }

    fn get(&mut self) -> &mut T {
        // SAFETY: mapped until this is dropped, and of plain integers.
        unsafe { &mut *self.0 }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made.
        unsafe { libc::munmap(self.0.cast(), size_of::<T>()) };
    }
}
