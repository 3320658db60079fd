//! `docker events`: what happens on this node, and on a manager in the swarm. The last are kept for who asks later.

mod filter;
mod local;
mod swarm;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_manager::clock;
use control_model::Timestamp;
use control_store::{Event, ReplicatedStore};
use futures::StreamExt as _;
use tokio::sync::broadcast;

pub use filter::Filter;
pub use local::{actor_of, of_container_action, of_exec};

use crate::context::Api;
use crate::dto::events::{Actor, Message};

/// Docker keeps so many.
const MAX_KEPT: usize = 256;
/// So many wait for one client; one that is slower misses some.
const MAX_WAITING: usize = 1024;
const NANOS: i64 = 1_000_000_000;

/// All that happens.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<Arc<Message>>>,
    told: broadcast::Sender<Arc<Message>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { kept: Mutex::default(), told: broadcast::Sender::new(MAX_WAITING) }
    }
}

impl Events {
    /// Keeps and tells it.
    pub fn tell(&self, message: Message) {
        let message = Arc::new(message);
        let mut kept = self.lock();
        if kept.len() == MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back(message.clone());
        // Told under the lock, so that who subscribes gets it once. Nobody may listen.
        let _ = self.told.send(message);
    }

    /// What is kept, the oldest first, and everything from then on.
    pub fn subscribe(&self) -> (Vec<Arc<Message>>, broadcast::Receiver<Arc<Message>>) {
        let kept = self.lock();
        (kept.iter().cloned().collect(), self.told.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Message>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells what happens, for as long as it is let.
pub async fn collect(api: Api) {
    tokio::join!(of_this_node(&api), of_the_swarm(&api));
}

async fn of_this_node(api: &Api) {
    let Some(engine) = api.node.local_engine() else { return };
    let mut events = engine.events();
    while let Some(event) = events.next().await {
        api.events.tell(local::message_of(event));
    }
}

/// While this node is a manager.
async fn of_the_swarm(api: &Api) {
    loop {
        let store = api.node.managed().await;
        // What a log that is read again holds has happened before. Without a quorum nobody knows where that ends.
        if let Err(error) = store.linearize().await {
            tracing::debug!(%error, "events begin with what the log has");
        }
        tokio::select! {
            never = of_store(api, &*store) => match never {},
            () = store.closed() => {}
        }
    }
}

async fn of_store(api: &Api, store: &dyn ReplicatedStore) -> Infallible {
    let tell = |events: &[Event]| {
        let messages = events.iter().filter_map(|event| swarm::message_of(event, clock::now()));
        messages.for_each(|message| api.events.tell(message));
    };
    let (mut seen, mut batches) = store.subscribe();
    loop {
        if let Some(batch) = batches.next().await {
            tell(&batch.events);
            seen = batch.state.clone();
        } else {
            // Events came faster than they were told: of what has changed more than once, once.
            let (state, anew) = store.subscribe();
            tell(&state.diff(&seen));
            (seen, batches) = (state, anew);
        }
    }
}

/// A message's time, kind, action and actor; the rest is Docker's repetition for old clients.
fn message(
    (at, scope): (Timestamp, &'static str),
    (kind, action): (&'static str, String),
    actor: Actor,
) -> Message {
    let is_old = matches!(kind, "container" | "image");
    Message {
        status: is_old.then(|| action.clone()),
        id: is_old.then(|| actor.id.clone()),
        from: actor.attributes.get("image").filter(|_| kind == "container").cloned(),
        kind,
        action,
        actor,
        scope,
        time: at.0.div_euclid(NANOS),
        time_nano: at.0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn numbered(number: i64) -> Message {
        message((Timestamp(number), "local"), ("image", "pull".into()), Actor::default())
    }

    #[test]
    fn the_last_are_kept_and_each_is_told_once() {
        let events = Events::default();
        for number in 0..300 {
            events.tell(numbered(number));
        }
        let (kept, mut told) = events.subscribe();
        assert_eq!((kept.len(), kept[0].time_nano, kept[255].time_nano), (256, 44, 299));
        events.tell(numbered(300));
        assert_eq!(told.try_recv().map(|message| message.time_nano), Ok(300));
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_message_has_dockers_shape() {
        let attributes = BTreeMap::from([("image".to_owned(), "web:1".to_owned())]);
        let of = |kind, scope| {
            let actor = Actor { id: "a".into(), attributes: attributes.clone() };
            let made = message((Timestamp(1_500_000_007), scope), (kind, "x".into()), actor);
            serde_json::to_string(&made).unwrap()
        };
        assert_eq!(
            of("container", "local"),
            r#"{"status":"x","id":"a","from":"web:1","Type":"container","Action":"x","Actor":{"ID":"a","Attributes":{"image":"web:1"}},"scope":"local","time":1,"timeNano":1500000007}"#
        );
        assert_eq!(
            of("service", "swarm"),
            r#"{"Type":"service","Action":"x","Actor":{"ID":"a","Attributes":{"image":"web:1"}},"scope":"swarm","time":1,"timeNano":1500000007}"#
        );
    }
}
