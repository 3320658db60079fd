//! `/proc/sys/net` of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::NetError;

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

/// The value without its line end; `None` if there is no such key (the interface is gone, or IPv6 is off).
pub(super) fn read(key: &str) -> Result<Option<String>, NetError> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NetError::file("read", &path(key), error)),
    }
}

/// Writes it if it differs.
pub(super) fn write(key: &str, value: &str) -> Result<(), NetError> {
    if read(key)?.as_deref() == Some(value) {
        return Ok(());
    }
    fs::write(path(key), value).map_err(|error| NetError::file("write", &path(key), error))
}

/// Like [`write()`]; a kernel without the key needs nothing.
pub(super) fn write_if_there(key: &str, value: &str) -> Result<(), NetError> {
    if read(key)?.is_some() { write(key, value) } else { Ok(()) }
}
