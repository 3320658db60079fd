//! The data key's file: present when, and only when, the directory holds a manager's Raft.
//!
//! It is the one place that says how the manager's disk is opened. Whatever else is secret there is sealed by the data
//! key, so that another key to open it with is one write of one small file.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::crypt::{Kek, Key, Wrapping};
use crate::error::OpenError;

const NAME: &str = "data.key";
const ID_LEN: usize = 8;
/// Begins the part that says how the key is wrapped. A sealed key, which begins with another byte, follows the Raft id
/// at once in files that say nothing.
const WRAPPING: u8 = 2;
/// Mark, locked or not, version.
const WRAPPING_LEN: usize = 1 + 1 + 8;

/// What the file tells anyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredKey {
    /// The Raft id whose data the directory holds.
    pub raft_id: u64,
    pub wrapping: Wrapping,
}

/// A manager's data key, for what lies beside its Raft data and must be as safe.
#[derive(Debug, Clone)]
pub struct DataKey {
    dir: PathBuf,
    raft_id: u64,
    key: Key,
}

impl DataKey {
    /// What can be known of the data key in `dir` without opening it; `None` if there is none.
    pub fn stored(dir: &Path) -> io::Result<Option<StoredKey>> {
        let Some(bytes) = read_file(dir)? else { return Ok(None) };
        let parts = Parts::of(&bytes).ok_or_else(|| io::Error::other("the data key's file is cut off"))?;
        Ok(Some(StoredKey { raft_id: parts.raft_id, wrapping: parts.wrapping }))
    }

    /// A new data key in `dir`, which `kek` opens.
    pub fn create(dir: &Path, raft_id: u64, kek: &Kek) -> io::Result<Self> {
        let key = Key::random();
        write(dir, raft_id, kek, &key)?;
        Ok(Self { dir: dir.to_owned(), raft_id, key })
    }

    /// Opens the data key in `dir`.
    pub fn open(dir: &Path, kek: &Kek) -> Result<Self, OpenError> {
        let stored = Self::stored(dir)?.ok_or_else(|| OpenError::Absent(dir.to_owned()))?;
        let key = read(dir, stored.raft_id, kek)?;
        Ok(Self { dir: dir.to_owned(), raft_id: stored.raft_id, key })
    }

    /// From now on `kek` opens the data key, and the one before doesn't.
    pub fn wrap(&self, kek: &Kek) -> io::Result<()> {
        write(&self.dir, self.raft_id, kek, &self.key)
    }

    /// `plain`, encrypted for `place`, which no other secret has.
    pub fn seal(&self, place: &str, plain: &[u8]) -> Vec<u8> {
        self.key.seal(place.as_bytes(), plain)
    }

    /// What was sealed for `place`.
    pub fn unseal(&self, place: &str, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        self.key.open(place.as_bytes(), sealed).map_err(|_| OpenError::Corrupt(place.to_owned()))
    }
}

/// The Raft id whose data `dir` holds, if any.
pub(crate) fn stored_raft_id(dir: &Path) -> io::Result<Option<u64>> {
    Ok(DataKey::stored(dir)?.map(|stored| stored.raft_id))
}

/// Reads the data key of `raft_id`.
pub(crate) fn read(dir: &Path, raft_id: u64, kek: &Kek) -> Result<Key, OpenError> {
    let bytes = read_file(dir)?.ok_or_else(|| OpenError::Absent(dir.to_owned()))?;
    let corrupt = || OpenError::Corrupt("data key".to_owned());
    let parts = Parts::of(&bytes).ok_or_else(corrupt)?;
    if parts.raft_id != raft_id {
        return Err(OpenError::OtherId(parts.raft_id, raft_id));
    }
    let bits = kek.key().open(&place(raft_id, parts.said), parts.sealed).map_err(|_| OpenError::WrongKey)?;
    Ok(Key::new(bits.try_into().map_err(|_| corrupt())?))
}

/// Writes the data key: from now on the directory is in use.
pub(crate) fn write(dir: &Path, raft_id: u64, kek: &Kek, key: &Key) -> io::Result<()> {
    let Wrapping { is_locked, version } = kek.wrapping();
    let mut said = vec![WRAPPING, u8::from(is_locked)];
    said.extend(version.to_be_bytes());
    let sealed = kek.key().seal(&place(raft_id, &said), key.bits());
    let bytes = [raft_id.to_be_bytes().as_slice(), &said, &sealed].concat();
    write_atomically(&dir.join(NAME), &bytes)?;
    // The directory itself may be new.
    dir.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
}

fn read_file(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(dir.join(NAME)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file, taken apart.
struct Parts<'a> {
    raft_id: u64,
    wrapping: Wrapping,
    /// The bytes that say so.
    said: &'a [u8],
    sealed: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let (raft_id, rest) = bytes.split_first_chunk::<ID_LEN>()?;
        let raft_id = u64::from_be_bytes(*raft_id);
        if rest.first() != Some(&WRAPPING) {
            return Some(Self { raft_id, wrapping: Wrapping::default(), said: &[], sealed: rest });
        }
        let (said, sealed) = rest.split_first_chunk::<WRAPPING_LEN>()?;
        let (_, version) = said.split_last_chunk::<8>()?;
        let wrapping = Wrapping { is_locked: said[1] != 0, version: u64::from_be_bytes(*version) };
        Some(Self { raft_id, wrapping, said, sealed })
    }
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

/// What is said of the key is sealed with it: a file that was changed opens no more.
fn place(raft_id: u64, said: &[u8]) -> Vec<u8> {
    [b"data key ".as_slice(), &raft_id.to_be_bytes(), said].concat()
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
    fn a_file_that_says_nothing_of_its_key_is_read_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let (kek, key) = (Kek::new([1; 32]), Key::random());
        let sealed = kek.key().seal(&place(7, &[]), key.bits());
        fs::write(dir.path().join(NAME), [7_u64.to_be_bytes().as_slice(), &sealed].concat()).unwrap();
        let stored = DataKey::stored(dir.path()).unwrap().unwrap();
        assert_eq!(stored, StoredKey { raft_id: 7, wrapping: Wrapping::default() });
        assert!(read(dir.path(), 7, &kek).unwrap() == key);
    }

    #[test]
    fn another_key_opens_the_same_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let beside = Kek::new([1; 32]);
        let user = Kek::with([2; 32], Wrapping { is_locked: true, version: 40 });
        write(dir.path(), 7, &beside, &Key::random()).unwrap();
        let opened = DataKey::open(dir.path(), &beside).unwrap();
        let sealed = opened.seal("node key", b"secret");

        opened.wrap(&user).unwrap();
        let stored = DataKey::stored(dir.path()).unwrap().unwrap();
        assert_eq!((stored.raft_id, stored.wrapping), (7, user.wrapping()));
        assert!(matches!(DataKey::open(dir.path(), &beside), Err(OpenError::WrongKey)));
        // What the file says of the key is no matter of trust: the bits alone open it.
        let opened = DataKey::open(dir.path(), &Kek::new([2; 32])).unwrap();
        assert_eq!(opened.unseal("node key", &sealed).unwrap(), b"secret");
        assert!(matches!(opened.unseal("other", &sealed), Err(OpenError::Corrupt(_))));
    }

    #[test]
    fn what_the_file_says_of_its_key_can_not_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let user = Kek::with([2; 32], Wrapping { is_locked: true, version: 40 });
        write(dir.path(), 7, &user, &Key::random()).unwrap();
        let path = dir.path().join(NAME);
        let bytes = fs::read(&path).unwrap();
        for at in ID_LEN + 1..ID_LEN + WRAPPING_LEN {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(matches!(DataKey::open(dir.path(), &user), Err(OpenError::WrongKey)), "byte {at}");
        }
        fs::write(&path, &bytes[..ID_LEN + 3]).unwrap();
        assert!(matches!(DataKey::open(dir.path(), &user), Err(OpenError::Io(_) | OpenError::Corrupt(_))));
    }

    #[test]
    fn a_cut_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), [1, 2, 3]).unwrap();
        assert!(matches!(read(dir.path(), 7, &Kek::new([1; 32])), Err(OpenError::Corrupt(_))));
        assert!(stored_raft_id(dir.path()).is_err());
    }
}
