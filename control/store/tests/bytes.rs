//! What the state takes of memory for a task: counted by an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use control_model::change::{Change, Entry, Object, RequestId};
use control_model::object::{NetworkAttachment, Service, Slot, Task};
use control_model::spec::{
    ContainerSpec, Placement, PortConfig, Protocol, PublishMode, ServiceSpec, TaskSpec,
};
use control_model::{NetworkId, ServiceId, TaskId, Timestamp};
use control_store::State;

/// The most that the state may take for one task of a service of ten, the service's share included. Measured: about 900.
const MAX_BYTES: usize = 1400;

const N_SERVICES: u128 = 300;
const N_TASKS: u64 = 10;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn service(number: u128) -> Service {
    let container = ContainerSpec {
        image: "registry.example/web:1.2.3".into(),
        env: vec!["LANG=C.UTF-8".into(), "MODE=production".into(), "PORT=8080".into()],
        args: vec!["serve".into(), "--verbose".into()],
        ..ContainerSpec::default()
    };
    let placement = Placement { constraints: vec!["node.role==worker".into()], ..Placement::default() };
    let spec = ServiceSpec {
        name: format!("service-{number}"),
        task: TaskSpec { container, placement, ..TaskSpec::default() }.into(),
        ..ServiceSpec::default()
    };
    Service::new(ServiceId::from_bits(number), spec)
}

fn task(service: &Service, slot: u64) -> Task {
    let mut task = Task::new(
        TaskId::from_bits(service.id.bits() << 64 | u128::from(slot)),
        service.id,
        Slot::Replica(slot),
    );
    task.service_name.clone_from(&service.spec.name);
    task.spec = service.spec.task.clone();
    task.ports = vec![PortConfig::new(Protocol::Tcp, 80, 8080, PublishMode::Ingress)];
    task.status.message = "pending task scheduling".into();
    let address = "10.0.0.7/24".parse().expect("an address");
    task.attachments =
        vec![NetworkAttachment { network: NetworkId::from_bits(1), address, aliases: Vec::new() }];
    task
}

/// As it comes from the log: bytes, of which nothing shares anything.
fn decoded(entry: &Entry) -> Entry {
    let bytes = rmp_serde::to_vec_named(entry).expect("model types serialize");
    rmp_serde::from_slice(&bytes).expect("what was just written")
}

#[test]
fn a_task_takes_little_more_than_what_is_its_own() {
    let before = LIVE.load(Ordering::Relaxed);
    let mut state = State::default();
    for number in 1..=N_SERVICES {
        let service = service(number);
        let tasks = (1..=N_TASKS).map(|slot| Change::Create(Object::Task(Box::new(task(&service, slot)))));
        let tasks: Vec<Change> = tasks.collect();
        let changes = [vec![Change::Create(Object::Service(Box::new(service)))], tasks].concat();
        let entry = decoded(&Entry { request: RequestId(number), at: Timestamp(1), changes });
        state.apply(u64::try_from(number).unwrap(), &entry).unwrap();
    }
    let per_task = (LIVE.load(Ordering::Relaxed) - before) / state.tasks().len();
    println!("{per_task} bytes for a task");
    assert!(per_task <= MAX_BYTES, "{per_task} bytes for a task");
}
