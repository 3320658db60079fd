//! One sandbox that is served: its names, and the tasks that answer on its sockets.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use dataplane_model::inspect::DnsWay;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::answer::{Outcome, SandboxView, answer, is_own, write_failure};
use crate::protocol::Asked;
use crate::question::Question;
use crate::response::Transport;
use crate::zones::Forwarding;

use super::forward::{ForwardClient, Forwarder, Upstreams};
use super::netns::{NetnsIdentity, SandboxSockets, Sockets};
use super::{tcp, udp};

/// A sandbox that is answered. Its view is swapped whole; readers never lock.
pub struct ServedSandbox {
    netns: NetnsIdentity,
    names: Arc<Names>,
    tasks: JoinSet<()>,
}

/// What the tasks of one sandbox share.
pub struct Names {
    served: ArcSwap<Served>,
    rotation: AtomicU32,
    forwarder: Arc<Forwarder>,
    client: ForwardClient,
    sockets: Arc<SandboxSockets>,
}

struct Served {
    view: SandboxView,
    /// The sandbox's own resolvers, if it has any.
    own: Option<Arc<Upstreams>>,
}

impl ServedSandbox {
    /// Serves on `worker`'s thread.
    pub fn start(
        worker: &Handle,
        sockets: Sockets,
        view: SandboxView,
        forwarder: Arc<Forwarder>,
    ) -> io::Result<Self> {
        let _context = worker.enter();
        let udp_socket = UdpSocket::from_std(sockets.udp)?;
        let tcp_listener = TcpListener::from_std(sockets.tcp)?;
        let sandbox_sockets = Arc::new(sockets.more);
        let names = Arc::new(Names {
            served: ArcSwap::from_pointee(Served::new(view, None, &sandbox_sockets)),
            rotation: AtomicU32::new(0),
            forwarder,
            client: ForwardClient::default(),
            sockets: sandbox_sockets,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_on(udp::serve(Arc::new(udp_socket), names.clone()), worker);
        tasks.spawn_on(tcp::serve(tcp_listener, names.clone()), worker);
        Ok(Self { netns: sockets.netns, names, tasks })
    }

    pub fn netns(&self) -> NetnsIdentity {
        self.netns
    }

    pub fn set_view(&self, view: SandboxView) {
        let before = self.names.served.load_full();
        self.names.served.store(Arc::new(Served::new(view, Some(&before), &self.names.sockets)));
    }

    pub fn names(&self) -> Arc<Names> {
        self.names.clone()
    }

    /// Returns when the sockets are closed.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
        self.names.client.close().await;
    }
}

impl Served {
    /// The same resolvers as `before` keep what is known of them.
    fn new(view: SandboxView, before: Option<&Self>, sockets: &Arc<SandboxSockets>) -> Self {
        let known = before.filter(|before| before.view.forwarding == view.forwarding);
        let own = match (known, own_servers(&view)) {
            (Some(known), _) => known.own.clone(),
            (None, Some(servers)) => Some(Arc::new(Upstreams::of_sandbox(servers, sockets.clone()))),
            (None, None) => None,
        };
        Self { view, own }
    }
}

fn own_servers(view: &SandboxView) -> Option<&[IpAddr]> {
    match &view.forwarding {
        Forwarding::Servers(servers) => Some(servers),
        Forwarding::Forbidden | Forwarding::Node => None,
    }
}

impl Names {
    pub fn answer(&self, query: &[u8], transport: Transport, out: &mut Vec<u8>) -> Outcome {
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        answer(query, &self.served.load().view, transport, rotation, out)
    }

    /// Replaces `out` by what the sandbox's resolvers say, or by a failure; at once if too many wait already. Returns where
    /// the answer came from.
    pub async fn forward(&self, question: &Question, transport: Transport, out: &mut Vec<u8>) -> DnsWay {
        let Some(_place) = self.client.limits.wait() else {
            write_failure(question, transport, out);
            return DnsWay::Nobody;
        };
        let own = self.served.load().own.clone();
        self.forwarder.forward(question, (&self.client, own.as_ref()), transport, out).await
    }

    /// What a task of the sandbox would get by TCP, where nothing is cut off.
    pub async fn ask(&self, query: &[u8]) -> Asked {
        let begun = Instant::now();
        let mut reply = Vec::new();
        let way = match self.answer(query, Transport::Tcp, &mut reply) {
            Outcome::Forward(question) => self.forward(&question, Transport::Tcp, &mut reply).await,
            Outcome::Reply if is_own(query, &self.served.load().view) => DnsWay::OwnZone,
            Outcome::Reply | Outcome::Silence => DnsWay::NotForwarded,
        };
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Asked { reply, way, took_us }
    }

    pub fn view(&self) -> SandboxView {
        self.served.load().view.clone()
    }
}
