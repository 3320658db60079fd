//! The state machine: the product's state, and the law that all managers apply the same entries.

use std::io;
use std::sync::Arc;

use control_consensus::Reply;
use control_store::State;
use futures::{Stream, TryStreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use super::disk::{Disk, Stored};
use super::laws::Witness;
use super::types::{Config, LogId};

/// What one manager has applied.
pub struct Machine {
    pub id: u64,
    pub state: Arc<State>,
    last: Option<LogId>,
    membership: StoredMembershipOf<Config>,
    disk: Disk,
    witness: Witness,
}

impl Machine {
    /// At the last snapshot, or at nothing.
    pub fn open(id: u64, disk: Disk, witness: Witness) -> Self {
        let Some(Stored { meta, image }) = disk.snapshot() else {
            let membership = StoredMembershipOf::<Config>::default();
            return Self { id, state: Arc::default(), last: None, membership, disk, witness };
        };
        let state = State::from_snapshot(&image).expect("a snapshot that was written is read");
        Self {
            id,
            state: Arc::new(state),
            last: meta.last_log_id,
            membership: meta.last_membership,
            disk,
            witness,
        }
    }

    fn advance(&mut self, index: u64) {
        let mut state = (*self.state).clone();
        state.advance(index);
        self.state = Arc::new(state);
    }
}

impl RaftStateMachine<Config> for Machine {
    type SnapshotData = Arc<Vec<u8>>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembershipOf<Config>)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Config>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id();
            self.last = Some(id);
            let mut reply = Reply(Vec::new());
            let mut requests = Vec::new();
            match entry.payload {
                EntryPayload::Normal(batch) => {
                    let mut state = (*self.state).clone();
                    requests = batch.writes.iter().map(|write| write.entry().request).collect();
                    reply = batch.apply(id.index(), &mut state, drop);
                    self.state = Arc::new(state);
                }
                EntryPayload::Blank => self.advance(id.index()),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembershipOf::<Config>::new(Some(id), membership);
                    self.advance(id.index());
                }
            }
            self.witness.applied(self.id, id, requests, self.state.clone());
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let (last_log_id, last_membership) = (self.last, self.membership.clone());
        let meta = SnapshotMetaOf::<Config> { last_log_id, last_membership };
        Builder { state: self.state.clone(), meta, disk: self.disk.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Config>,
        image: Arc<Vec<u8>>,
    ) -> io::Result<()> {
        let state = State::from_snapshot(&image).map_err(io::Error::other)?;
        self.disk.write_snapshot(Stored { meta: meta.clone(), image }).await?;
        self.state = Arc::new(state);
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.witness.installed(self.id, self.last, self.state.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Config, Arc<Vec<u8>>>>> {
        let stored = self.disk.snapshot();
        Ok(stored.map(|stored| SnapshotOf::<Config, _> { meta: stored.meta, snapshot: stored.image }))
    }
}

/// Makes a snapshot of one state while the machine goes on.
pub struct Builder {
    state: Arc<State>,
    meta: SnapshotMetaOf<Config>,
    disk: Disk,
}

impl RaftSnapshotBuilder<Config> for Builder {
    type SnapshotData = Arc<Vec<u8>>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Config, Arc<Vec<u8>>>> {
        let image = Arc::new(self.state.to_snapshot());
        let stored = Stored { meta: self.meta.clone(), image: image.clone() };
        self.disk.write_snapshot(stored).await?;
        Ok(SnapshotOf::<Config, _> { meta: self.meta.clone(), snapshot: image })
    }
}
