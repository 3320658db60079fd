//! A session keeps no copy of what was sent to its agent.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::sync::Arc;

use control_manager::assignments::NodeAssignments;
use control_model::object::{NetworkAttachment, NodeDescription, NodeStatus, Slot, TaskStatus};
use control_model::spec::Role;
use control_model::{
    Change, Entry, Network, NetworkId, Node, NodeId, Object, RequestId, ServiceId, Task, TaskId, TaskState,
    Timestamp,
};
use control_store::{Event, State};

thread_local! {
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
}

/// The system's, counting what this thread holds.
struct Counting;

fn count(n_bytes: usize, sign: isize) {
    LIVE_BYTES.set(LIVE_BYTES.get() + sign * isize::try_from(n_bytes).expect("no layout is larger"));
}

// SAFETY: every call goes to the system's allocator as it came; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const N_SESSIONS: u8 = 100;
const N_TASKS: u128 = 10_000;
const INGRESS: NetworkId = NetworkId::from_bits(1);
/// Of one session: an own task's networks, and what belongs to the state before until all sessions are past it.
const MAX_SESSION_BYTES: isize = 4096;

fn node_id(n: u8) -> NodeId {
    NodeId::from_bits(u128::from(n) + 1)
}

fn node(n: u8) -> Object {
    let address = Ipv4Addr::new(198, 18, 0, n);
    Object::Node(Box::new(Node {
        description: NodeDescription {
            data_path_addr: Some(address.into()),
            addresses: vec![address.into()],
            ..NodeDescription::default()
        },
        status: NodeStatus { data_path_alive: true, ..NodeStatus::default() },
        ..Node::new(node_id(n), Role::Worker)
    }))
}

fn task(n: u128) -> Object {
    let [_, _, high, low] = u32::try_from(n).expect("few").to_be_bytes();
    let attachment = NetworkAttachment {
        network: INGRESS,
        address: format!("10.0.{high}.{low}/16").parse().expect("an address"),
        aliases: Vec::new(),
    };
    Object::Task(Box::new(Task {
        service_name: "web".into(),
        node: Some(node_id(u8::try_from(n % u128::from(N_SESSIONS)).expect("few"))),
        attachments: vec![attachment],
        status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
        ..Task::new(
            TaskId::from_bits(n),
            ServiceId::from_bits(1),
            Slot::Replica(u64::try_from(n).expect("few")),
        )
    }))
}

fn apply(state: &State, changes: Vec<Change>) -> (Arc<State>, Vec<Event>) {
    let index = state.index() + 1;
    let entry = Entry { request: RequestId(index.into()), at: Timestamp(0), changes };
    let mut state = state.clone();
    let events = state.apply(index, &entry).expect("valid changes");
    (Arc::new(state), events)
}

#[test]
fn sessions_share_the_state_and_hold_no_rows() {
    let objects = [Object::Network(Box::new(Network::ingress(INGRESS)))];
    let objects = objects.into_iter().chain((0..N_SESSIONS).map(node)).chain((1..=N_TASKS).map(task));
    let (mut state, _) = apply(&State::default(), objects.map(Change::Create).collect());
    let held = || LIVE_BYTES.get();

    let before = held();
    let rows = NodeAssignments::new(node_id(0), state.clone()).complete();
    let set_bytes = held() - before;
    assert!(rows.len() > usize::try_from(N_TASKS).expect("few"), "each node knows of each task");
    drop(rows);

    let before = held();
    let mut sessions: Vec<_> =
        (0..N_SESSIONS).map(|n| NodeAssignments::new(node_id(n), state.clone())).collect();
    // Each task runs now, and every session is told of each.
    for n in 1..=10 {
        let status = TaskStatus { state: TaskState::Running, ..TaskStatus::default() };
        let events;
        (state, events) = apply(&state, vec![Change::TaskStatus { id: TaskId::from_bits(n), status }]);
        for session in &mut sessions {
            assert_eq!(session.advance(state.clone(), &events).upserts.len(), 1);
        }
    }
    let session_bytes = (held() - before) / isize::from(N_SESSIONS);
    println!(
        "a set of {N_TASKS} tasks is {set_bytes} bytes; a session of {N_SESSIONS} holds {session_bytes}"
    );
    assert!(session_bytes <= MAX_SESSION_BYTES, "{session_bytes} bytes in each session");
}
