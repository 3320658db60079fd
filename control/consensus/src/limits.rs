//! Times and sizes, each with its reason.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

/// Largest encoded entry (swarmkit's `MaxTransactionBytes`): one write stays well below the RPC's message limit.
pub(crate) const MAX_ENTRY_BYTES: usize = 3 << 19;

/// Batches of writes under way at once, from one manager; what comes meanwhile waits for the next one. Several, for a batch takes
/// the time of an fsync on two managers; few, for the more writes wait together, the less each of them costs.
pub(crate) const MAX_SENDERS: usize = 2;

/// A batch that takes longer holds up no others: its leader may be gone, and another one elected.
pub(crate) const SENDER_TURN: Duration = Duration::from_millis(50);

/// Encoded entries sent to a follower in one message; at least one is sent.
/// With one entry above it the message still fits [`control_rpc::MAX_BODY_BYTES`].
pub(crate) const MAX_APPEND_BYTES: usize = 4 << 20;
const _: () = assert!(MAX_APPEND_BYTES + 2 * MAX_ENTRY_BYTES < control_rpc::MAX_BODY_BYTES);

/// Largest snapshot taken from another manager. 100,000 tasks need about 100 MB.
pub(crate) const MAX_SNAPSHOT_BYTES: usize = 1 << 30;

/// A snapshot travels in pieces of this size: small enough not to hold up heartbeats on the same connection.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;

/// Jobs that one transaction of the log takes: bounds the time until the first of them is answered.
pub(crate) const MAX_GROUP_COMMIT: usize = 512;

/// A write is retried this long over changes of the leader.
pub(crate) const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
// A write that is retried must be known as such when it was applied already.
const _: () = assert!(2 * PROPOSE_TIMEOUT.as_secs() <= control_store::REMEMBERED_FOR.as_secs());

/// A read waits this long for a leader: longer than an election, short enough for a user to see the reason.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// One try at the leader: one that has vanished without a word is asked anew when another may have been elected.
pub(crate) const LEADER_TIMEOUT: Duration = Duration::from_millis(1500);

/// Pause before the leader is asked again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// One exchange of a few entries and its fsync. openraft's own hint, the heartbeat interval, is too short for that on a machine
/// that stalls.
pub(crate) const APPEND_TIMEOUT: Duration = Duration::from_secs(2);

/// A longer message has more time: a message that can't be done in time would be sent for ever. 2 Mbit/s, the slowest link between
/// managers that is worth having.
pub(crate) const SLOWEST_LINK_BYTES_PER_S: u32 = 256 << 10;

/// Who gets the whole state takes it in and puts it on its disk besides, however small it is.
pub(crate) const INSTALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A learner that has what came during this time within this time keeps up: sooner than a follower would miss its leader.
pub(crate) const CATCH_UP_ROUND: Duration = Duration::from_millis(500);

/// A change of the members, and one try to become one.
pub(crate) const MEMBERSHIP_TIMEOUT: Duration = Duration::from_mins(1);

/// Leadership is handed over in milliseconds, or not at all.
pub(crate) const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a manager checks that leader and quorum still answer.
pub(crate) const LEADER_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// A leader that no quorum has answered for so long tells its loops that it leads no more; a follower that has
/// not heard its leader for so long, and elected no other, has none. Longer than an election.
pub(crate) const LEADER_LOST_AFTER: Duration = Duration::from_secs(2);

/// A leader that was heard within this time is there: almost three of its heartbeats.
pub(crate) const LEADER_HEARD_WITHIN: Duration = Duration::from_millis(700);

/// A leader whose last word is older has missed a heartbeat: time to look whether its process is there. Heartbeats come up to a
/// fifth later than they should (see [`HEARTBEAT_MS`]), and packets differ.
pub(crate) const LEADER_LOOK_AFTER: Duration = Duration::from_millis(HEARTBEAT_MS + 90);

/// A voter that has not heard the leader for so long misses it, when another one asks: the leader's last word came to both at the
/// same time, by what packets and clocks differ.
pub(crate) const LEADER_MISSED_AFTER: Duration = Duration::from_millis(HEARTBEAT_MS + 70);

/// A leader answers reads for so long after it sent what a majority has answered. Before that majority misses it
/// nobody else is elected.
pub(crate) const READ_LEASE: Duration = Duration::from_millis(HEARTBEAT_MS + 50);
const _: () = assert!(READ_LEASE.as_millis() < LEADER_MISSED_AFTER.as_millis());
const _: () = assert!(LEADER_MISSED_AFTER.as_millis() < LEADER_LOOK_AFTER.as_millis());

/// Beyond it a majority is asked; one that is there answers within this time.
pub(crate) const READ_INDEX_TIMEOUT: Duration = Duration::from_millis(200);

/// A read waits so long for one that is under way, to share the next: the leader may be gone, and another one elected.
pub(crate) const READ_SHARED_FOR: Duration = Duration::from_millis(50);

/// A machine that is there refuses or accepts a connection within this time.
pub(crate) const LEADER_LOOK_TIMEOUT: Duration = Duration::from_millis(100);

/// Voters look one after the other, so far apart: an election takes less, and two candidates would take votes from each other.
pub(crate) const LEADER_LOOK_TURN: Duration = Duration::from_millis(100);

/// A read or write that takes longer begins to look whether there is a quorum at all. With one there is, nothing takes
/// so long but an election.
pub(crate) const ASK_AFTER: Duration = Duration::from_millis(100);

/// A voter that is there answers within this time.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// Voters are not asked more often than this.
pub(crate) const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// So many rounds in a row must find too few voters before that is an answer: a single one may be lost. Together with the
/// times above it takes less than a second.
pub(crate) const LOOKS: u32 = 2;

/// Rounds further apart than this are not in a row.
pub(crate) const ASKED_LATELY: Duration = Duration::from_secs(5);

/// A member that answered a heartbeat within this time counts as reachable.
pub(crate) const REACHABLE_WITHIN: Duration = Duration::from_millis(1500);

/// Leader to followers. Three may be lost before an election. openraft looks at its clock five times per heartbeat, on
/// every manager: this is most of what an idle manager does.
const HEARTBEAT_MS: u64 = 250;

/// openraft's lease is the upper bound; an election begins after lease + random(lower..upper) without a heartbeat:
/// 0.9–1.2 s. A stall of the machine shorter than that elects nobody; pre-vote keeps a longer one from disturbing
/// a leader that the others still hear. etcd's default is 1 s.
const ELECTION_MIN_MS: u64 = 300;
const ELECTION_MAX_MS: u64 = 600;

/// Encoded entries in the log beyond which a snapshot is made and the log cut off behind it, however few they are: it
/// bounds the file, and what a restart replays.
pub(crate) const MAX_LOG_BYTES: usize = 64 << 20;

/// Encoded entries kept in memory, the newest. Followers that keep up, and the state machine, ask for no others: what is
/// older is read from the file.
pub(crate) const LOG_MEMORY_BYTES: usize = 2 << 20;

/// Pages of the log's file kept in memory. They serve the writer's next transaction, which touches the same few pages of
/// the tree; redb's own default is 1 GiB.
pub(crate) const FILE_CACHE_BYTES: usize = 2 << 20;

/// How often the log is looked at: whether the cluster's settings ask for a snapshot or a cut, or its size does. At 1.5 MiB an
/// entry and 100 entries a second, the size overshoots by 300 MB.
pub(crate) const LOG_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// A log file larger than this is compacted when it is opened: redb's files only grow.
pub(crate) const COMPACT_FILE_BYTES: u64 = 128 << 20;

/// Entries per message; [`MAX_APPEND_BYTES`] bounds it further.
const MAX_APPEND_ENTRIES: u64 = 256;

/// openraft's configuration.
pub fn raft_config() -> Config {
    Config {
        cluster_name: "meshd".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        max_payload_entries: MAX_APPEND_ENTRIES,
        // Both are settings of the cluster, which may change: `housekeeping` obeys them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // A restarted leader may have lost the mark of what was committed: it must be elected to learn it.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
    .validate()
    .expect("the constants are in order")
}
