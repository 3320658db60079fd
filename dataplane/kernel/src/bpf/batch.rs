//! Whole arrays in one system call each way: a large ring has 65,537 places.

use std::io;
use std::os::fd::BorrowedFd;

use super::sys::{self, BPF_MAP_LOOKUP_BATCH, BPF_MAP_UPDATE_BATCH, BatchAttr};

/// Writes `values` to the places 0, 1, … of an array of `u32`.
pub fn write(array: BorrowedFd<'_>, values: &[u32]) -> io::Result<()> {
    let count = u32::try_from(values.len()).map_err(io::Error::other)?;
    let keys: Vec<u32> = (0..count).collect();
    let mut attr = BatchAttr {
        keys: keys.as_ptr().addr() as u64,
        values: values.as_ptr().addr() as u64,
        count,
        map_fd: sys::number(array),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel reads `count` keys and values of four bytes, which outlive the call.
    unsafe { sys::bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
    if attr.count == count { Ok(()) } else { Err(io::Error::other("the kernel took a part of the batch")) }
}

/// The first `count` places of an array of `u32`.
pub fn read(array: BorrowedFd<'_>, count: u32) -> io::Result<Vec<u32>> {
    let size = usize::try_from(count).map_err(io::Error::other)?;
    let mut keys = vec![0_u32; size];
    let mut values = vec![0_u32; size];
    let mut next = 0_u32;
    let mut attr = BatchAttr {
        out_batch: std::ptr::from_mut(&mut next).addr() as u64,
        keys: keys.as_mut_ptr().addr() as u64,
        values: values.as_mut_ptr().addr() as u64,
        count,
        map_fd: sys::number(array),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel writes at most `count` keys and values of four bytes, and one key as the next batch's start.
    match unsafe { sys::bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    if attr.count == count { Ok(values) } else { Err(io::Error::other("the array is shorter than expected")) }
}
