//! The few bpf(2) commands that aya has no call for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

// Commands and types of linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// Arrays of any size fit one outer map (kernel 5.10).
const BPF_F_INNER_MAP: u32 = 1 << 12;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
pub const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
pub const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
pub const BPF_MAP_DELETE_BATCH: libc::c_int = 27;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `bpf_attr` of the batch commands.
#[repr(C)]
#[derive(Default)]
pub struct BatchAttr {
    pub in_batch: u64,
    pub out_batch: u64,
    pub keys: u64,
    pub values: u64,
    pub count: u32,
    pub map_fd: u32,
    pub elem_flags: u64,
    pub flags: u64,
}

#[repr(C)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The start of `bpf_link_info`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    pad: u32,
    /// What the link hangs on: the union's first eight bytes.
    target: [u32; 2],
}

impl LinkInfo {
    /// Of an XDP or TCX link: 0 if it is detached, or the interface is gone.
    pub fn ifindex(&self) -> u32 {
        self.target[0]
    }

    /// Of a cgroup link: 0 if it is detached, or the cgroup is gone.
    pub fn cgroup_id(&self) -> u64 {
        let [first, second] = self.target.map(u32::to_ne_bytes);
        u64::from_ne_bytes([first, second].concat().try_into().expect("twice four bytes"))
    }
}

/// The start of `bpf_prog_info`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct ProgramInfo {
    kind: u32,
    id: u32,
}

/// The start of `bpf_map_info`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct MapInfo {
    kind: u32,
    id: u32,
    /// Bytes.
    pub key_size: u32,
    /// Bytes.
    pub value_size: u32,
}

/// One bpf(2) call.
///
/// # Safety
/// The pointers inside `attr` must be valid for what the command does with them.
pub unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the size is that of the attribute, which the kernel copies; the caller vouches for its pointers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new array of `n_elements`, to be put into an outer map.
pub fn create_inner_array<V: aya::Pod>(n_elements: usize) -> io::Result<OwnedFd> {
    let mut attr = MapCreateAttr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: u32::try_from(size_of::<V>()).map_err(io::Error::other)?,
        max_entries: u32::try_from(n_elements).map_err(io::Error::other)?,
        map_flags: BPF_F_INNER_MAP,
        inner_map_fd: 0,
        numa_node: 0,
        map_name: *b"ring\0\0\0\0\0\0\0\0\0\0\0\0",
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_MAP_CREATE, &mut attr) }.map(own)
}

/// Opens what is pinned at `path`.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr { pathname: path.as_ptr().addr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path outlives the call.
    unsafe { bpf(BPF_OBJ_GET, &mut attr) }.map(own)
}

/// A descriptor that a command has returned.
fn own(result: libc::c_long) -> OwnedFd {
    let fd = RawFd::try_from(result).expect("the kernel's descriptors are small");
    // SAFETY: the kernel has just made this descriptor for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Lets a link hold another program from now on. Fails if what it hung on is gone.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link_fd: number(link), new_prog_fd: number(program), flags: 0, old_prog_fd: 0 };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link off what it hangs on, before this returns. Removing its pin alone does so some time later.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link_fd: number(link) };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// What a link hangs on.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    // SAFETY: plain integers, of which any bytes are some.
    unsafe { info_of(link, &mut info) }?;
    Ok(info)
}

/// What a map's elements are like.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    // SAFETY: as in `link_info`.
    unsafe { info_of(map, &mut info) }?;
    Ok(info)
}

/// The id of a program.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgramInfo::default();
    // SAFETY: as in `link_info`.
    unsafe { info_of(program, &mut info) }?;
    Ok(info.id)
}

/// # Safety
/// `T` must be the start of what the kernel tells about this kind of descriptor, and any bytes a `T`.
unsafe fn info_of<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let size = u32::try_from(size_of::<T>()).expect("a few words");
    let mut attr =
        InfoAttr { bpf_fd: number(fd), info_len: size, info: std::ptr::from_mut(info).addr() as u64 };
    // SAFETY: the kernel writes at most the size given.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// A descriptor as the kernel's attributes have it.
pub fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("descriptors that are open are not negative")
}
