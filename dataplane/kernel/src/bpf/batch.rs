//! Many elements in one system call: a large ring has 65,537 places, a busy node a hundred thousand flows.

use std::convert::Infallible;
use std::io;
use std::os::fd::BorrowedFd;

use aya::Pod;

use super::sys::{self, BPF_MAP_DELETE_BATCH, BPF_MAP_LOOKUP_BATCH, BPF_MAP_UPDATE_BATCH, BatchAttr};

/// Writes `values` to the elements 0, 1, … of an array.
pub fn write<V: Pod>(array: BorrowedFd<'_>, values: &[V]) -> io::Result<()> {
    let count = u32::try_from(values.len()).map_err(io::Error::other)?;
    let keys: Vec<u32> = (0..count).collect();
    let mut attr = BatchAttr {
        keys: keys.as_ptr().addr() as u64,
        values: values.as_ptr().addr() as u64,
        count,
        map_fd: sys::number(array),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel reads `count` keys and values, which outlive the call.
    unsafe { sys::bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
    if attr.count == count { Ok(()) } else { Err(io::Error::other("the kernel took a part of the batch")) }
}

/// Puts maps into a map of maps. Replacing one waits until no program uses the old one, a batch of them waits once (kernel
/// 6.8 and newer).
pub fn put_maps<K: Pod>(outer: BorrowedFd<'_>, keys: &[K], inner: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<u32> = inner.iter().map(|fd| sys::number(*fd)).collect();
    if numbers.len() != keys.len() {
        return Err(io::Error::other("a batch with more keys than values, or fewer"));
    }
    let count = u32::try_from(keys.len()).map_err(io::Error::other)?;
    let mut attr = BatchAttr {
        keys: keys.as_ptr().addr() as u64,
        values: numbers.as_ptr().addr() as u64,
        count,
        map_fd: sys::number(outer),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel reads `count` keys, and as many descriptors of four bytes; both outlive the call.
    unsafe { sys::bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
    if attr.count == count { Ok(()) } else { Err(io::Error::other("the kernel took a part of the batch")) }
}

/// Removes elements. Ends with an error at the first that is absent.
pub fn remove<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    let mut attr = BatchAttr {
        keys: keys.as_ptr().addr() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: sys::number(map),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel reads `count` keys, which outlive the call.
    unsafe { sys::bpf(BPF_MAP_DELETE_BATCH, &mut attr) }.map(drop)
}

/// Elements asked for at once. Grows where one bucket holds more.
const BATCH: usize = 4096;
/// A hash map with more elements in one bucket than this is no map of ours.
const LARGEST_BATCH: usize = 1 << 20;

/// All elements of a hash map, in no order. What is written meanwhile may be missing or twice.
pub fn dump<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut rows = Vec::new();
    let all: Result<(), Infallible> = visit(map, |batch| {
        rows.extend(batch);
        Ok(())
    })?;
    let Ok(()) = all;
    Ok(rows)
}

/// As [`dump`], batch by batch; ends early with the first error of `work`.
pub fn visit<K: Pod, V: Pod, E>(
    map: BorrowedFd<'_>,
    mut work: impl FnMut(Vec<(K, V)>) -> Result<(), E>,
) -> io::Result<Result<(), E>> {
    let mut size = BATCH;
    let (mut position, mut next) = (None, 0_u32);
    loop {
        let mut keys: Vec<K> = Vec::with_capacity(size);
        let mut values: Vec<V> = Vec::with_capacity(size);
        let mut attr = BatchAttr {
            in_batch: position
                .as_ref()
                .map_or(0, |position| std::ptr::from_ref::<u32>(position).addr() as u64),
            out_batch: std::ptr::from_mut(&mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(size).map_err(io::Error::other)?,
            map_fd: sys::number(map),
            ..BatchAttr::default()
        };
        // SAFETY: the kernel writes at most `count` keys and values, for which there is room, and one bucket's number.
        let result = unsafe { sys::bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let at_end = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < LARGEST_BATCH => {
                size *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = usize::try_from(attr.count).map_err(io::Error::other)?;
        if count > size {
            return Err(io::Error::other("the kernel returned more elements than were asked for"));
        }
        // SAFETY: the kernel has written `count` of each, and any bytes are a value of a `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        let result = work(keys.into_iter().zip(values).collect());
        if at_end || result.is_err() {
            return Ok(result);
        }
        position = Some(next);
    }
}

/// The first `count` elements of an array.
pub fn read<V: Pod>(array: BorrowedFd<'_>, count: u32) -> io::Result<Vec<V>> {
    let size = usize::try_from(count).map_err(io::Error::other)?;
    let mut keys = vec![0_u32; size];
    let mut values: Vec<V> = Vec::with_capacity(size);
    let mut next = 0_u32;
    let mut attr = BatchAttr {
        out_batch: std::ptr::from_mut(&mut next).addr() as u64,
        keys: keys.as_mut_ptr().addr() as u64,
        values: values.as_mut_ptr().addr() as u64,
        count,
        map_fd: sys::number(array),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel writes at most `count` keys and values, for which there is room, and one key as the next batch's
    // start.
    match unsafe { sys::bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    if attr.count != count {
        return Err(io::Error::other("the array is shorter than expected"));
    }
    // SAFETY: the kernel has written as many, and any bytes are a value of a `Pod`.
    unsafe { values.set_len(size) };
    Ok(values)
}
