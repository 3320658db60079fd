//! A leader whose process has ended is replaced before its silence alone says so.
//!
//! Silence is waited for longer than a machine stalls. But where a process has ended its machine is there, and its kernel
//! refuses connections to the port that it listened at. A follower that misses a heartbeat looks, and asks the others for their
//! votes at once, marked as a hand-over: else they would wait for the leader's lease to pass. Nobody reads by the lease of a
//! leader that is no more. One that lives answers the look, or is heard; of a machine that is gone no answer comes, and its
//! silence is waited for.
//!
//! A packet filter refuses connections too, to a leader that lives. So the other voters are asked first: more than half must miss
//! the leader, and be refused. Before they have missed it its reads by lease have ended ([`READ_LEASE`]).
//!
//! [`READ_LEASE`]: crate::limits::READ_LEASE

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use control_rpc::Channels;
use control_rpc::pb::Empty;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use openraft::alias::VoteOf;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::Fatal;
use openraft::raft::TransferLeaderRequest;
use openraft::{Instant as _, Raft};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::limits::{LEADER_LOOK_AFTER, LEADER_LOOK_TIMEOUT, LEADER_LOOK_TURN};
use crate::machine::Machine;
use crate::network::raft_client;
use crate::types::TypeConfig;

/// A leader that is not heard.
struct Silent {
    vote: VoteOf<TypeConfig>,
    addr: SocketAddr,
    /// The other voters, without it.
    others: Vec<SocketAddr>,
    /// How many voters look before this one.
    turn: u32,
}

impl Silent {
    /// Does more than half of the voters miss it, this one among them? One that does not answer is not counted.
    async fn is_missed_by_most(&self, channels: &Channels) -> bool {
        let n_voters = self.others.len() + 2;
        let mut asking: FuturesUnordered<_> =
            self.others.iter().map(|addr| misses(channels, *addr)).collect();
        let mut n_missing = 1;
        while n_missing <= n_voters / 2 {
            match asking.next().await {
                Some(is_missing) => n_missing += usize::from(is_missing),
                None => return false,
            }
        }
        true
    }
}

/// Does the voter at `addr` miss the leader, too?
async fn misses(channels: &Channels, addr: SocketAddr) -> bool {
    let call = async { raft_client(channels, addr).misses(Empty {}).await };
    matches!(timeout(LEADER_LOOK_TIMEOUT, call).await, Ok(Ok(reply)) if reply.get_ref().leader)
}

/// Looks after the leader until Raft stops.
pub(crate) async fn watch(raft: Raft<TypeConfig, Machine>, raft_id: u64, channels: Arc<Channels>) {
    loop {
        let looked = async {
            if let Some(wait) = until_silent(&raft).await? {
                sleep(wait).await;
            } else {
                look(&raft, raft_id, &channels).await?;
                sleep(LEADER_LOOK_TURN).await;
            }
            Ok::<_, Fatal<TypeConfig>>(())
        };
        if looked.await.is_err() {
            return;
        }
    }
}

/// How long the leader that was heard last has until the next word of it is late; `None` if that is over.
async fn until_silent(raft: &Raft<TypeConfig, Machine>) -> Result<Option<Duration>, Fatal<TypeConfig>> {
    let heard = raft.with_raft_state(openraft::RaftState::vote_last_modified).await?;
    let silent_for = heard.map_or(Duration::ZERO, |at| at.elapsed());
    Ok(LEADER_LOOK_AFTER.checked_sub(silent_for).filter(|wait| !wait.is_zero()))
}

/// Campaigns, if the leader's process has ended.
async fn look(
    raft: &Raft<TypeConfig, Machine>,
    raft_id: u64,
    channels: &Channels,
) -> Result<(), Fatal<TypeConfig>> {
    let Some(silent) = silent_leader(raft, raft_id).await? else { return Ok(()) };
    sleep(LEADER_LOOK_TURN * silent.turn).await;
    if until_silent(raft).await?.is_some() || !refuses(silent.addr).await {
        return Ok(());
    }
    if !silent.is_missed_by_most(channels).await {
        tracing::debug!(leader = %silent.addr, "its port refuses connections, and others do not miss it");
        return Ok(());
    }
    tracing::info!(leader = %silent.addr, "the leader's process has ended");
    // Does nothing where another leader, or candidate, was heard of meanwhile.
    let request = TransferLeaderRequest::new(silent.vote, raft_id, None);
    if let Err(error) = raft.handle_transfer_leader(request).await? {
        tracing::debug!(%error, "no campaign");
    }
    Ok(())
}

/// The leader that this voter follows.
async fn silent_leader(
    raft: &Raft<TypeConfig, Machine>,
    raft_id: u64,
) -> Result<Option<Silent>, Fatal<TypeConfig>> {
    let found = {
        let metrics = raft.metrics();
        let now = metrics.borrow_watched();
        let membership = now.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let leader = now.current_leader.filter(|leader| *leader != raft_id && voters.contains(&raft_id));
        let addr = leader.and_then(|leader| Some(membership.get_node(&leader)?.addr));
        let before = voters.iter().filter(|id| **id < raft_id && Some(**id) != leader).count();
        let others = voters.iter().filter(|id| **id != raft_id && Some(**id) != leader);
        let others: Vec<_> = others.filter_map(|id| Some(membership.get_node(id)?.addr)).collect();
        addr.map(|addr| (addr, others, u32::try_from(before).unwrap_or(u32::MAX)))
    };
    let Some((addr, others, turn)) = found else { return Ok(None) };
    let vote = raft.with_raft_state(|state| *state.vote_ref()).await?;
    Ok(Some(Silent { vote, addr, others, turn }))
}

/// Does the port of the leader that this voter follows refuse connections? Of none that is known nothing is expected.
pub(crate) async fn is_refused(raft: &Raft<TypeConfig, Machine>, raft_id: u64) -> bool {
    match silent_leader(raft, raft_id).await {
        Ok(Some(silent)) => refuses(silent.addr).await,
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Whether the machine is there, and nobody listens on it. Silence is no answer.
async fn refuses(addr: SocketAddr) -> bool {
    let connected = timeout(LEADER_LOOK_TIMEOUT, TcpStream::connect(addr)).await;
    matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}
