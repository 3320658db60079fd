//! Names of the world outside: asked of all resolvers at once from the node's own namespace; the fastest good answer
//! wins and is kept for a short time.

mod cache;
mod exchange;
mod resolv_conf;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use tokio::task::JoinSet;

use crate::answer::write_failure;
use crate::question::Question;
use crate::response::Transport;
use crate::zones::Forwarding;

use self::cache::Cache;
use self::exchange::{Upstream, exchange};
use self::resolv_conf::ResolvConf;

/// Resolvers that are asked for one name; glibc's resolver takes as many.
const MAX_RESOLVERS: usize = 3;

/// Port of DNS.
const DNS_PORT: u16 = 53;

/// Asks other resolvers. Shared by all sandboxes.
pub struct Forwarder {
    resolv_conf: ResolvConf,
    cache: Cache,
}

impl Forwarder {
    pub fn new(resolv_conf: PathBuf) -> Self {
        Self { resolv_conf: ResolvConf::new(resolv_conf), cache: Cache::default() }
    }

    /// The reply to `query`: from the cache, from a resolver, or a failure that tells the client to try again.
    pub async fn forward(
        &self,
        question: &Question,
        query: &[u8],
        forwarding: &Forwarding,
        transport: Transport,
    ) -> Vec<u8> {
        let resolvers = self.resolvers(forwarding);
        if let Some(reply) = self.cache.get(question, &resolvers, transport, Instant::now()) {
            return reply;
        }
        let Some(reply) = ask_all(question, query, &resolvers, transport).await else {
            self.cache.put_failure(question, &resolvers, Instant::now());
            let mut failure = Vec::new();
            write_failure(question, transport, &mut failure);
            return failure;
        };
        self.cache.put(question, &resolvers, &reply, Instant::now());
        reply
    }

    fn resolvers(&self, forwarding: &Forwarding) -> Vec<SocketAddr> {
        let addresses = match forwarding {
            Forwarding::Forbidden => Vec::new(),
            Forwarding::Node => self.resolv_conf.resolvers(),
            Forwarding::Servers(servers) => servers.clone(),
        };
        addresses.into_iter().take(MAX_RESOLVERS).map(|address| SocketAddr::new(address, DNS_PORT)).collect()
    }
}

/// The first answer that decides the question, else any other, with the query's own id.
async fn ask_all(
    question: &Question,
    query: &[u8],
    resolvers: &[SocketAddr],
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut exchanges = JoinSet::new();
    for resolver in resolvers {
        let upstream = Upstream { resolver: *resolver, transport };
        exchanges.spawn(exchange(upstream, question.clone(), query.to_vec()));
    }
    let mut undecided = None;
    while let Some(done) = exchanges.join_next().await {
        match done {
            Ok(Ok(answer)) if answer.decides => return Some(answer.bytes),
            Ok(Ok(answer)) => undecided = Some(answer.bytes),
            Ok(Err(error)) => tracing::debug!(%error, "a resolver did not answer"),
            Err(error) => tracing::warn!(%error, "a look-up ended unexpectedly"),
        }
    }
    undecided
}
