//! Small helpers for files that a crash must never leave half written.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file whole: to a temporary name in the same directory, synced, then renamed over. Survives a power cut.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    replace(path, |file| file.write_all(bytes).and_then(|()| file.sync_data()))
}

/// The same without the sync: survives the end of any process, but maybe not a power cut.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

fn replace(
    path: &Path,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let temporary = path.with_extension(unique_suffix());
    let mut file = std::fs::File::create(&temporary)?;
    let renamed = write(&mut file).and_then(|()| std::fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    renamed
}

/// A suffix that no other call of this process or another living one gives.
pub(crate) fn unique_suffix() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("tmp-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Removes a directory tree; an absent one is success. By `rm`, which opens one directory at a time: a container can make them
/// deeper than this process may have files open.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let output = Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Removes a file; an absent one is success.
pub(crate) fn remove_file(path: &Path) -> std::io::Result<()> {
    absent_is_fine(std::fs::remove_file(path))
}

fn absent_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
