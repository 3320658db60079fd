//! The state machine: applies committed entries to [`State`] and tells who watches.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use control_store::{Event, EventBatch, EventReceiver, State, Watchers};
use futures::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::watch;

use crate::error::OpenError;
use crate::snapshot::{SnapshotFile, Stored};
use crate::types::{Batch, Reply, TypeConfig};

/// Objects that one [`Group`] changes, or entries of it: it bounds how long the first of them waits for its answer, and how
/// long the thread is kept from what else runs on it.
const MAX_GROUP: usize = 2000;

/// What readers see of the state machine.
pub(crate) struct View {
    state: ArcSwap<State>,
    /// Held while the state changes and while a watcher is added, so that a watcher misses nothing.
    watchers: Mutex<Watchers>,
    applied: watch::Sender<u64>,
}

impl View {
    pub(crate) fn new(state: State) -> Self {
        let applied = watch::Sender::new(state.index());
        Self { state: ArcSwap::from_pointee(state), watchers: Mutex::default(), applied }
    }

    /// The state now.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// The state, and every batch after it, as long as the watcher keeps up.
    pub(crate) fn subscribe(&self) -> (Arc<State>, EventReceiver) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = watchers.add();
        (self.state.load_full(), receiver)
    }

    /// Index of the last applied entry, now and from now on.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Entries have led to `state`. `events` is `None` if they changed nothing but the index.
    fn publish(&self, state: State, events: Option<Vec<Event>>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, state) = (state.index(), Arc::new(state));
        self.state.store(state.clone());
        if let Some(events) = events {
            watchers.publish(EventBatch { index, events, state });
        }
        drop(watchers);
        self.applied.send_replace(index);
    }
}

/// Entries that were applied together, and that nobody has seen yet: whoever watches or waits is woken once for all of them,
/// and what one of them copied of the state the next ones write in place.
struct Group {
    state: State,
    events: Option<Vec<Event>>,
    answers: Vec<(ApplyResponder<TypeConfig>, Reply)>,
    /// Entries, and objects that they changed.
    size: usize,
}

impl Group {
    fn after(view: &View) -> Self {
        Self { state: (*view.state()).clone(), events: None, answers: Vec::new(), size: 0 }
    }

    fn apply(&mut self, index: u64, batch: &Batch) -> Reply {
        let Self { state, events, size, .. } = self;
        batch.apply(index, state, |happened| {
            *size += happened.len();
            if !happened.is_empty() {
                events.get_or_insert_default().extend(happened);
            }
        })
    }

    fn publish(self, view: &View) {
        if self.size > 0 {
            view.publish(self.state, self.events);
        }
        for (responder, reply) in self.answers {
            responder.send(reply);
        }
    }
}

/// openraft's state machine over [`State`].
pub(crate) struct Machine {
    view: Arc<View>,
    last: Option<LogIdOf<TypeConfig>>,
    membership: StoredMembershipOf<TypeConfig>,
    file: SnapshotFile,
}

impl Machine {
    /// The machine at the last snapshot, or at nothing.
    pub(crate) fn open(file: SnapshotFile) -> Result<Self, OpenError> {
        let (state, last, membership) = match file.read()? {
            None => (State::default(), None, StoredMembershipOf::<TypeConfig>::default()),
            Some(stored) => {
                let state = stored.state()?;
                (state, stored.meta.last_log_id, stored.meta.last_membership)
            }
        };
        Ok(Self { view: Arc::new(View::new(state)), last, membership, file })
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.clone()
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Arc<Vec<u8>>;
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut group = Group::after(&self.view);
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id();
            self.last = Some(id);
            let reply = match entry.payload {
                EntryPayload::Normal(batch) => group.apply(id.index(), &batch),
                EntryPayload::Blank => {
                    group.state.advance(id.index());
                    Reply(Vec::new())
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembershipOf::<TypeConfig>::new(Some(id), membership);
                    group.state.advance(id.index());
                    Reply(Vec::new())
                }
            };
            group.size += 1;
            group.answers.extend(responder.map(|responder| (responder, reply)));
            if group.size >= MAX_GROUP {
                group.publish(&self.view);
                tokio::task::yield_now().await;
                group = Group::after(&self.view);
            }
        }
        group.publish(&self.view);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta =
            SnapshotMetaOf::<TypeConfig> { last_log_id: self.last, last_membership: self.membership.clone() };
        Builder { state: self.view.state(), meta, file: self.file.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        image: Arc<Vec<u8>>,
    ) -> io::Result<()> {
        let (file, meta, before) = (self.file.clone(), meta.clone(), self.view.state());
        let (state, events, meta) = blocking(move || {
            let state = State::from_snapshot(&image).map_err(io::Error::other)?;
            let image = Arc::unwrap_or_clone(image);
            let stored = Stored { meta, image };
            file.write(&stored)?;
            let events = state.diff(&before);
            Ok((state, events, stored.meta))
        })
        .await?;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership;
        self.view.publish(state, Some(events));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, Arc<Vec<u8>>>>> {
        let file = self.file.clone();
        let stored = blocking(move || file.read().map_err(io::Error::other)).await?;
        Ok(stored.map(|stored| SnapshotOf::<TypeConfig, _> {
            meta: stored.meta,
            snapshot: Arc::new(stored.image),
        }))
    }
}

/// Writes a snapshot of one state while the machine goes on.
pub(crate) struct Builder {
    state: Arc<State>,
    meta: SnapshotMetaOf<TypeConfig>,
    file: SnapshotFile,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Arc<Vec<u8>>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, Arc<Vec<u8>>>> {
        let (state, meta, file) = (self.state.clone(), self.meta.clone(), self.file.clone());
        blocking(move || {
            let stored = Stored { meta, image: state.to_snapshot() };
            file.write(&stored)?;
            Ok(SnapshotOf::<TypeConfig, _> { meta: stored.meta, snapshot: Arc::new(stored.image) })
        })
        .await
    }
}
