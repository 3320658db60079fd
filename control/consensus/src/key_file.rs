//! The data key's file: present when, and only when, the directory holds a manager's Raft.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::crypt::{Kek, Key};
use crate::error::OpenError;

const NAME: &str = "data.key";
const ID_LEN: usize = 8;

/// The Raft id whose data `dir` holds, if any.
pub(crate) fn stored_raft_id(dir: &Path) -> io::Result<Option<u64>> {
    let bytes = match fs::read(dir.join(NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (id, _) = split(&bytes).ok_or_else(|| io::Error::other("the data key's file is cut off"))?;
    Ok(Some(u64::from_be_bytes(*id)))
}

/// Reads the data key of `raft_id`.
pub(crate) fn read(dir: &Path, raft_id: u64, kek: &Kek) -> Result<Key, OpenError> {
    let bytes = match fs::read(dir.join(NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Absent(dir.to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let corrupt = || OpenError::Corrupt("data key".to_owned());
    let (id, sealed) = split(&bytes).ok_or_else(corrupt)?;
    if u64::from_be_bytes(*id) != raft_id {
        return Err(OpenError::OtherId(u64::from_be_bytes(*id), raft_id));
    }
    let bits = kek.key().open(&place(raft_id), sealed).map_err(|_| OpenError::WrongKey)?;
    Ok(Key::new(bits.try_into().map_err(|_| corrupt())?))
}

/// Writes the data key: from now on the directory is in use.
pub(crate) fn write(dir: &Path, raft_id: u64, kek: &Kek, key: &Key) -> io::Result<()> {
    let mut bytes = raft_id.to_be_bytes().to_vec();
    bytes.extend(kek.key().seal(&place(raft_id), key.bits()));
    write_atomically(&dir.join(NAME), &bytes)
}

/// Replaces `path` whole, durably, readable by its owner alone.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let dir = path.parent().expect("the path names a file in a directory");
    fs::File::open(dir)?.sync_all()
}

fn split(bytes: &[u8]) -> Option<(&[u8; ID_LEN], &[u8])> {
    bytes.split_first_chunk()
}

fn place(raft_id: u64) -> Vec<u8> {
    [b"data key ".as_slice(), &raft_id.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_returns_to_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (kek, key) = (Kek::new([1; 32]), Key::random());
        assert_eq!(stored_raft_id(dir.path()).unwrap(), None);
        assert!(matches!(read(dir.path(), 7, &kek), Err(OpenError::Absent(_))));
        write(dir.path(), 7, &kek, &key).unwrap();
        assert_eq!(stored_raft_id(dir.path()).unwrap(), Some(7));
        assert!(read(dir.path(), 7, &kek).unwrap() == key);
        assert!(matches!(read(dir.path(), 8, &kek), Err(OpenError::OtherId(7, 8))));
        assert!(matches!(read(dir.path(), 7, &Kek::new([2; 32])), Err(OpenError::WrongKey)));
    }

    #[test]
    fn a_cut_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), [1, 2, 3]).unwrap();
        assert!(matches!(read(dir.path(), 7, &Kek::new([1; 32])), Err(OpenError::Corrupt(_))));
        assert!(stored_raft_id(dir.path()).is_err());
    }
}
