//! What is in a volume: counted, moved.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Bytes of the files below, links not followed. However deep that is, one directory is open at a time; what can't be read is
/// not counted.
pub(crate) fn size_bytes(content: &Path) -> io::Result<u64> {
    let mut size = 0;
    let mut dirs = vec![content.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if dir == content => return Err(error),
            other => other.into_iter().flatten().flatten(),
        };
        for entry in entries {
            match entry.metadata() {
                Ok(there) if there.is_dir() => dirs.push(entry.path()),
                Ok(there) => size += there.len(),
                Err(_) => {}
            }
        }
    }
    Ok(size)
}

/// Those of one directory into another of the same file system that has none of their names.
pub(super) fn move_entries(from: &Path, to: &Path) -> io::Result<()> {
    let to = File::open(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        match renameat2(AT_FDCWD, &entry.path(), &to, name.as_os_str(), RenameFlags::RENAME_NOREPLACE) {
            // Somebody has put it there meanwhile.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
