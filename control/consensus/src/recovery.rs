//! A new cluster of one manager, made of what an old one left: on its disk (`--force-new-cluster`), or in a backup.
//!
//! The replica begins anew beside the old one: another Raft id, a snapshot of all that the old log held, itself as the
//! only voter. The data key stays, for it seals more than this. One rename puts it in the old one's place. The new Raft
//! id alone keeps the old side from counting this manager's votes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use control_model::change::{Change, Entry, RequestId};
use control_store::State;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use openraft::alias::{CommittedLeaderIdOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry as _;
use openraft::storage::RaftLogStorage as _;
use openraft::{EntryPayload, Membership, RaftLogReader as _};

use crate::consensus::{Consensus, LOG_FILE, Options};
use crate::crypt::Key;
use crate::error::OpenError;
use crate::key_file;
use crate::limits::LOG_MEMORY_BYTES;
use crate::log::LogStore;
use crate::snapshot::{SnapshotFile, Stored};
use crate::types::{Member, TypeConfig};

/// All that a replica had on disk.
struct Remains {
    state: State,
    last: LogIdOf<TypeConfig>,
    /// No leader of a later one is known here.
    term: u64,
}

impl Consensus {
    /// Makes a cluster of this manager alone out of what is in the directory, which nobody has open, and opens it.
    /// `options.raft_id` is a new one. What `changes` makes of the state is part of it before anybody reads it.
    ///
    /// Every entry of the log counts, committed or not: each may have been acknowledged by managers that are gone.
    pub async fn recover(
        options: Options,
        changes: impl FnOnce(&State) -> Vec<Change>,
    ) -> Result<Arc<Self>, OpenError> {
        let dir = &options.dir;
        let former = Self::stored_raft_id(dir)?.ok_or_else(|| OpenError::Absent(dir.clone()))?;
        let key = key_file::read(dir, former, &options.kek)?;
        let remains = read(dir, key.clone()).await?;
        let beside = dir.with_extension("new");
        write_anew(&beside, &options, key, remains, changes).await?;
        replace(&beside, dir)?;
        Self::open(options).await
    }

    /// Makes a cluster of this manager alone out of a backup's state, and opens it. Refuses a used directory.
    pub async fn restore(
        options: Options,
        state: State,
        changes: impl FnOnce(&State) -> Vec<Change>,
    ) -> Result<Arc<Self>, OpenError> {
        let dir = &options.dir;
        if Self::stored_raft_id(dir)?.is_some() {
            return Err(OpenError::Exists(dir.clone()));
        }
        // Terms are counted anew: nobody who knows the old ones is a member.
        let leader = CommittedLeaderIdOf::<TypeConfig>::new(1);
        let last = LogIdOf::<TypeConfig>::new(leader, state.index());
        write_anew(dir, &options, Key::random(), Remains { state, last, term: 1 }, changes).await?;
        Self::open(options).await
    }
}

/// Writes a replica into `dir` that begins with `remains` and a first entry of `changes`.
async fn write_anew(
    dir: &Path,
    options: &Options,
    key: Key,
    mut remains: Remains,
    changes: impl FnOnce(&State) -> Vec<Change>,
) -> Result<(), OpenError> {
    if remains.state.cluster().is_none() {
        return Err(OpenError::Empty(options.dir.clone()));
    }
    let first =
        Entry { request: RequestId(rand::random()), at: (options.clock)(), changes: changes(&remains.state) };
    let leader = CommittedLeaderIdOf::<TypeConfig>::new(remains.term + 1);
    let first_id = LogIdOf::<TypeConfig>::new(leader, remains.last.index() + 1);
    let applied = remains.state.apply(first_id.index(), &first);
    applied.map_err(|error| OpenError::Raft(format!("the new cluster's first entry: {error}")))?;
    write(dir, options, key, (&remains.state, first_id)).await
}

/// Everything, up to the last entry.
async fn read(dir: &Path, key: Key) -> Result<Remains, OpenError> {
    let (mut state, mut last) = match SnapshotFile::new(dir, key.clone()).read()? {
        None => (State::default(), None),
        Some(stored) => (stored.state()?, stored.meta.last_log_id),
    };
    let mut log = LogStore::open(&dir.join(LOG_FILE), key, LOG_MEMORY_BYTES)?;
    let entries = log.try_get_log_entries(0..).await;
    let vote = log.read_vote().await?;
    log.close().await;
    for entry in entries? {
        let index = entry.index();
        let next = last.map_or(0, |last| last.index() + 1);
        if index < next {
            continue;
        }
        if index > next {
            return Err(OpenError::Corrupt(format!("entry {next} is missing")));
        }
        last = Some(entry.log_id());
        match &entry.payload {
            // What was refused then is refused now.
            EntryPayload::Normal(batch) => drop(batch.apply(index, &mut state, drop)),
            EntryPayload::Blank | EntryPayload::Membership(_) => state.advance(index),
        }
    }
    let last = last.ok_or_else(|| OpenError::Empty(dir.to_owned()))?;
    let voted = vote.map_or(0, |vote| vote.leader_id.term);
    Ok(Remains { state, last, term: voted.max(last.leader_id.term) })
}

/// A replica in `dir` that begins with `state` at `last`.
async fn write(
    dir: &Path,
    options: &Options,
    key: Key,
    (state, last): (&State, LogIdOf<TypeConfig>),
) -> Result<(), OpenError> {
    remove(dir)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let raft_id = options.raft_id;
    let members = BTreeMap::from([(raft_id, Member { node_id: options.node_id, addr: options.addr })]);
    let membership = Membership::new(vec![BTreeSet::from([raft_id])], members)
        .map_err(|error| OpenError::Raft(error.to_string()))?;
    let meta = SnapshotMetaOf::<TypeConfig> {
        last_log_id: Some(last),
        last_membership: StoredMembershipOf::<TypeConfig>::new(Some(last), membership),
    };
    let stored = Stored { meta, image: state.to_snapshot() };
    SnapshotFile::new(dir, key.clone()).write(&stored)?;
    let mut log = LogStore::create(&dir.join(LOG_FILE), key.clone(), LOG_MEMORY_BYTES)?;
    // The next election is in a later term than anything before.
    let voted = log.save_vote(&VoteOf::<TypeConfig>::new(last.leader_id.term, raft_id)).await;
    let begun = log.purge(last).await;
    log.close().await;
    voted.and(begun)?;
    Ok(key_file::write(dir, raft_id, &options.kek, &key)?)
}

/// Puts `new` in the place of `dir`, in one step, and removes what was there.
fn replace(new: &Path, dir: &Path) -> io::Result<()> {
    renameat2(AT_FDCWD, new, AT_FDCWD, dir, RenameFlags::RENAME_EXCHANGE)?;
    let parent = dir.parent().expect("the directory is in another");
    fs::File::open(parent)?.sync_all()?;
    remove(new)
}

/// Removing what is absent is success.
fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
