//! Flows outlive a change of the ABI, as long as their own layout stays.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane_kernel::bpf::{Bpf, PinDir, Tables, remove_other_versions};
use dataplane_kernel::{Kernel as _, LinuxKernel, LinuxOptions, Pause, Sweeper as _};
use ebpf_abi::names::map;
use ebpf_abi::{
    ABI_VERSION, CachedBackend, FLOW_LAYOUT, FlowTuple, ForwardFlow, ForwardKey, Port, ReplyFlow, ReplyKey,
    protocol,
};

use crate::support::lab::{CLIENT, NODES, TASKS};

const PATIENCE: Duration = Duration::from_mins(1);

/// A directory of pins, with nothing attached.
struct Pinned(PathBuf);

impl Pinned {
    fn new(name: &str) -> Self {
        let name = format!("meshd-upgrade-{}-{name}", std::process::id());
        Self(PathBuf::from("/sys/fs/bpf").join(name))
    }

    /// As one meshd has them.
    fn open(&self) -> Tables {
        Bpf::open(&self.0).unwrap().tables
    }

    fn flows(&self, layout: u32) -> PathBuf {
        self.0.join(format!("flows{layout}"))
    }

    fn version(&self, version: u32) -> PathBuf {
        self.0.join(format!("v{version}"))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A flow of the client to task 0, with its row in the cache.
fn add_flow(tables: &mut Tables, client_port: u16) {
    let client = (CLIENT, Port::new(client_port));
    let service = (NODES[0], Port::new(8080));
    let tuple = FlowTuple::new(client, service, protocol::TCP);
    tables.flow_cache.insert(&tuple, &CachedBackend { backend: TASKS[0], ring: 0 }).unwrap();
    let forward = ForwardFlow::new(Port::new(80), client.1, 77);
    tables.flows.insert(&ForwardKey::new(&tuple, TASKS[0]), &forward).unwrap();
    let reply = ReplyFlow::new(service, client.1, 77);
    tables.replies.insert(&ReplyKey::new((TASKS[0], Port::new(80)), client, protocol::TCP), &reply).unwrap();
}

fn count_flows(tables: &Tables) -> [usize; 3] {
    [
        tables.flow_cache.rows().unwrap().len(),
        tables.flows.rows().unwrap().len(),
        tables.replies.rows().unwrap().len(),
    ]
}

#[test]
fn flows_stay_while_all_else_changes() {
    let pinned = Pinned::new("newer");
    add_flow(&mut pinned.open(), 40_000);
    fs::rename(pinned.version(ABI_VERSION), pinned.version(ABI_VERSION + 1)).unwrap();
    assert_eq!(count_flows(&pinned.open()), [1, 1, 1]);
}

#[test]
fn flows_that_can_not_be_read_go() {
    let pinned = Pinned::new("layout");
    add_flow(&mut pinned.open(), 40_000);
    let other = pinned.flows(FLOW_LAYOUT + 1);
    fs::rename(pinned.flows(FLOW_LAYOUT), &other).unwrap();
    let mut tables = pinned.open();
    assert_eq!(count_flows(&tables), [0, 0, 0]);
    assert!(other.exists(), "its programs carry the traffic until a view is applied");
    remove_other_versions(&PinDir::new(&pinned.0)).unwrap();
    assert!(!other.exists());

    add_flow(&mut tables, 40_000);
    let own = pinned.flows(FLOW_LAYOUT);
    fs::remove_file(own.join(map::FLOWS)).unwrap();
    fs::rename(own.join(map::REPLIES), own.join(map::FLOWS)).unwrap();
    assert_eq!(count_flows(&pinned.open()), [1, 0, 0], "rows of another size are not taken for flows");
}

fn kernel(pinned: &Pinned) -> LinuxKernel {
    let netns_dir = std::env::temp_dir().join(pinned.0.file_name().unwrap());
    let options =
        LinuxOptions { netns_dir, uplinks: vec![], bpffs_dir: pinned.0.clone(), cgroup2_root: None };
    LinuxKernel::open(options).unwrap()
}

/// A daemon that has started again, and was not told yet what is wanted: who else would count the seconds, and collect what is
/// over?
#[tokio::test]
async fn flows_end_before_the_first_view() {
    let pinned = Pinned::new("unseen");
    let mut tables = pinned.open();
    add_flow(&mut tables, 40_000);
    let mut kernel = kernel(&pinned);

    let pause: Pause = Arc::new(|| ControlFlow::Continue(()));
    kernel.sweeper().sweep(&pause).unwrap();

    assert_eq!(count_flows(&tables), [1, 0, 0], "its task is gone");
    let started = Instant::now();
    while tables.tick.get().unwrap() == 0 {
        assert!(started.elapsed() < PATIENCE, "the clock stands still");
        kernel.tick().unwrap();
        std::thread::yield_now();
    }
}

/// Until a view is applied this version's tables tell of no task.
#[tokio::test]
async fn flows_stay_until_an_older_version_is_gone() {
    let pinned = Pinned::new("older");
    add_flow(&mut pinned.open(), 40_000);
    let older = pinned.version(ABI_VERSION - 1);
    fs::rename(pinned.version(ABI_VERSION), &older).unwrap();
    let tables = pinned.open();
    let pause: Pause = Arc::new(|| ControlFlow::Continue(()));
    let mut sweeper = kernel(&pinned).sweeper();

    sweeper.sweep(&pause).unwrap();
    assert_eq!(count_flows(&tables), [1, 1, 1]);

    fs::remove_dir_all(older).unwrap();
    sweeper.sweep(&pause).unwrap();
    assert_eq!(count_flows(&tables), [1, 0, 0]);
}

#[tokio::test]
async fn without_pins_nothing_is_made() {
    let pinned = Pinned::new("nothing");
    kernel(&pinned).tick().unwrap();
    assert!(!pinned.0.exists());
}
