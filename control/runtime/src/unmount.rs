//! What is mounted, and that it is no more.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// Unmounts whatever is mounted at `target`; nothing is success.
pub(crate) fn unmount_all(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Is something mounted at the path, which is absolute and leads through no link?
pub(crate) fn is_mount_point(target: &Path) -> io::Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let target = escaped(target);
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(&target)))
}

/// As the kernel writes a path into a list (`mangle` in `fs/seq_file.c`).
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        match c {
            ' ' => text.push_str("\\040"),
            '\t' => text.push_str("\\011"),
            '\n' => text.push_str("\\012"),
            '\\' => text.push_str("\\134"),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_known() {
        assert!(is_mount_point(Path::new("/proc")).expect("readable"));
        assert!(!is_mount_point(Path::new("/proc/self")).expect("readable"));
        assert_eq!(escaped(Path::new("/a b\\c")), "/a\\040b\\134c");
    }
}
