//! Takes zones from meshd and makes the served sandboxes equal to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use dataplane_model::SandboxId;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use crate::answer::{SandboxView, sandbox_views};
use crate::protocol::{
    Ack, Asked, Command, FrameError, PROTOCOL_VERSION, Shown, ShownSandbox, read_frame, write_frame,
};
use crate::zones::{NetworkZone, Zones};

use super::forward::Forwarder;
use super::netns::{Opener, identify};
use super::sandbox::ServedSandbox;
use super::workers::Workers;

/// The feeding side of the server.
pub struct Feed {
    state: Arc<Mutex<State>>,
    shutdown: Arc<Notify>,
}

struct State {
    forwarder: Arc<Forwarder>,
    workers: Workers,
    opener: Opener,
    sandboxes: BTreeMap<SandboxId, ServedSandbox>,
    ack: Ack,
}

impl Feed {
    pub fn new(forwarder: Forwarder, workers: Workers, opener: Opener) -> Self {
        let ack = Ack { protocol: PROTOCOL_VERSION, ..Ack::default() };
        let forwarder = Arc::new(forwarder);
        let state = State { forwarder, workers, opener, sandboxes: BTreeMap::new(), ack };
        Self { state: Arc::new(Mutex::new(state)), shutdown: Arc::new(Notify::new()) }
    }

    /// Talks with meshd, and with the next one: whoever writes last is served. Returns when one asks for the end.
    pub async fn accept(&self, listener: &UnixListener, connections: &mut JoinSet<()>) {
        loop {
            tokio::select! {
                () = self.shutdown.notified() => return,
                Some(_) = connections.join_next() => (),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(converse(stream, self.state.clone(), self.shutdown.clone()));
                    }
                    Err(error) => tracing::warn!(%error, "can't accept a connection"),
                },
            }
        }
    }

    /// Closes all sockets.
    pub async fn close(&self) {
        let sandboxes = std::mem::take(&mut self.state.lock().await.sandboxes);
        for sandbox in sandboxes.into_values() {
            sandbox.close().await;
        }
    }
}

async fn converse(mut stream: UnixStream, state: Arc<Mutex<State>>, shutdown: Arc<Notify>) {
    let result: Result<(), FrameError> = async {
        let hello = state.lock().await.ack.clone();
        write_frame(&mut stream, &hello).await?;
        while let Some(command) = read_frame(&mut stream).await? {
            match command {
                Command::SetZones(zones) => {
                    let ack = state.lock().await.apply(zones).await;
                    write_frame(&mut stream, &ack).await?;
                }
                Command::Show(sandbox) => {
                    let shown = state.lock().await.show(sandbox.as_ref());
                    write_frame(&mut stream, &shown).await?;
                }
                Command::Query(query) => {
                    let names = state.lock().await.sandboxes.get(&query.sandbox).map(ServedSandbox::names);
                    let asked = match names {
                        // The feed goes on meanwhile.
                        Some(names) => Ok(names.ask(&query.message).await),
                        None => Err(format!("no names are served to {}", query.sandbox.0)),
                    };
                    write_frame::<Result<Asked, String>>(&mut stream, &asked).await?;
                }
                Command::Shutdown => shutdown.notify_one(),
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = result {
        tracing::info!(%error, "connection of meshd ended");
    }
}

impl State {
    /// Serves `zones` and nothing else.
    async fn apply(&mut self, zones: Zones) -> Ack {
        let revision = zones.revision;
        let paths: BTreeMap<SandboxId, PathBuf> =
            zones.sandboxes.iter().map(|(id, zone)| (id.clone(), zone.netns.clone())).collect();
        let mut views = sandbox_views(zones);
        self.close_the_gone(&paths).await;
        for (id, sandbox) in &self.sandboxes {
            if let Some(view) = views.remove(id) {
                sandbox.set_view(view);
            }
        }
        let failed = self.open_the_new(&paths, views).await;
        let served = self.sandboxes.keys().cloned().collect();
        self.ack = Ack { protocol: PROTOCOL_VERSION, revision, served, failed };
        self.ack.clone()
    }

    /// What is served to `only`, or to all.
    fn show(&self, only: Option<&SandboxId>) -> Shown {
        let mut shown = Shown { revision: self.ack.revision, ..Shown::default() };
        for (id, sandbox) in self.sandboxes.iter().filter(|(id, _)| only.is_none_or(|only| only == *id)) {
            let SandboxView { networks, forwarding, keeps_short_names, ttl } = sandbox.names().view();
            let of_sandbox = networks.iter().map(|zone| zone.name.clone()).collect();
            for zone in networks {
                shown.networks.entry(zone.name.clone()).or_insert_with(|| NetworkZone::clone(&zone));
            }
            let row = ShownSandbox { networks: of_sandbox, forwarding, keeps_short_names, ttl };
            shown.sandboxes.insert(id.clone(), row);
        }
        shown
    }

    /// Closes the sockets of sandboxes that left, and of those whose path names another namespace now: an open socket
    /// keeps its namespace.
    async fn close_the_gone(&mut self, paths: &BTreeMap<SandboxId, PathBuf>) {
        let is_same = |id: &SandboxId, sandbox: &ServedSandbox| {
            paths.get(id).is_some_and(|path| identify(path).is_ok_and(|now| now == sandbox.netns()))
        };
        let gone: Vec<SandboxId> = self
            .sandboxes
            .iter()
            .filter(|(id, sandbox)| !is_same(id, sandbox))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            if let Some(sandbox) = self.sandboxes.remove(&id) {
                sandbox.close().await;
            }
        }
    }

    /// Opens sockets for `views`; returns those that failed, and why.
    async fn open_the_new(
        &mut self,
        paths: &BTreeMap<SandboxId, PathBuf>,
        views: BTreeMap<SandboxId, SandboxView>,
    ) -> BTreeMap<SandboxId, String> {
        if views.is_empty() {
            return BTreeMap::new();
        }
        let wanted = views.keys().map(|id| paths.get(id).cloned().unwrap_or_default()).collect();
        let opened = self.opener.open_all(wanted).await;
        let mut failed = BTreeMap::new();
        for ((id, view), sockets) in views.into_iter().zip(opened) {
            let (worker, forwarder) = (self.workers.next(), self.forwarder.clone());
            match sockets.and_then(|sockets| ServedSandbox::start(&worker, sockets, view, forwarder)) {
                Ok(sandbox) => {
                    self.sandboxes.insert(id, sandbox);
                }
                Err(error) => {
                    failed.insert(id, error.to_string());
                }
            }
        }
        failed
    }
}
