//! A driver that starts where another one worked, of this version or an older one, takes over under load: not one packet is
//! lost. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "others use the rest")]
mod lab;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane_driver::DriverOptions;
use dataplane_kernel::bpf::HookPin;
use dataplane_model::kernel_state::HookMode;
use dataplane_plan::{IngressHook, TcAttach};
use ebpf_abi::{ABI_VERSION, FLOW_LAYOUT, ProgramId};
use lab::numbered::{Asks, Numbered, Pause, serve_echo};
use lab::{Lab, NODE_A, NODE_B, Node, Ns, view};
use nix::net::if_::{if_indextoname, if_nameindex};

/// Answers that each way gives between two events.
const N_BETWEEN: u64 = 50;
/// Between two questions of a client.
const PACE: Duration = Duration::from_millis(2);

/// What is behind this is lost, not late.
const LATE: Duration = Duration::from_secs(10);

/// In what the older version differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changed {
    Nothing,
    AllButFlows,
    FlowsToo,
}

/// What goes on all the time, by every way that packets take.
struct Load {
    datagrams: Vec<Numbered>,
    asking: Vec<Asking>,
}

/// A client that asks and is answered until it is dropped, by one connection or by many.
struct Asking {
    name: &'static str,
    shared: Arc<Answers>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Answers {
    is_over: AtomicBool,
    pause: Pause,
    n_answered: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Load {
    fn start(lab: &Lab) -> Self {
        let (five, six) = (lab.a.sandbox(5), lab.b.sandbox(6));
        for sandbox in [&five, &six] {
            serve_echo(sandbox, 80);
            lab::serve_greetings(sandbox, 81, "held");
            lab::serve_tcp(sandbox, 80, "anew");
        }
        // Several of a kind: the ring leads some of them to this node's task, others to the other node's.
        let mut datagrams = Vec::new();
        for _ in 0..3 {
            for (name, node) in [("client to a", NODE_A), ("client to b", NODE_B)] {
                datagrams.push(Numbered::start(name, &lab.client, (node, 8080), Asks::Connected));
            }
        }
        for (name, from, to) in [
            ("five to six", &five, (view::app(6), 80)),
            ("six to five", &six, (view::app(5), 80)),
            ("five to the virtual address", &five, (view::VIP, 80)),
            ("five to a's port", &five, (NODE_A, 8080)),
        ] {
            datagrams.push(Numbered::start(name, from, to, Asks::Connected));
        }
        for (name, from, to) in [
            ("six to the virtual address", &six, (view::VIP, 80)),
            ("a's process to its port", &lab.a.ns, (NODE_A, 8080)),
        ] {
            datagrams.push(Numbered::start(name, from, to, Asks::Unconnected));
        }
        let mut asking = vec![
            Asking::held("five to six, held", &five, (view::app(6), 81)),
            Asking::held("six to the virtual address, held", &six, (view::VIP, 81)),
        ];
        for (name, node) in [("client to a, held", NODE_A), ("client to b, held", NODE_B)] {
            asking.extend((0..2).map(|_| Asking::held(name, &lab.client, (node, 8081))));
        }
        asking.push(Asking::anew("client to a, anew", &lab.client, (NODE_A, 8080)));
        asking.push(Asking::anew("five to the virtual address, anew", &five, (view::VIP, 80)));
        Self { datagrams, asking }
    }

    /// By every way there are more answers after this than before.
    fn goes_on(&self) {
        let asked: Vec<u64> = self.datagrams.iter().map(|way| way.n_sent() + N_BETWEEN).collect();
        let held: Vec<u64> = self.asking.iter().map(|held| held.n_answered() + N_BETWEEN).collect();
        let is_so = || {
            self.datagrams.iter().zip(&asked).all(|(way, n)| way.n_sent() >= *n)
                && self.asking.iter().zip(&held).all(|(held, n)| held.n_answered() >= *n || held.has_failed())
        };
        lab::wait_until("the load goes on", is_so, String::new);
    }

    /// Nobody waits for an answer while `change` happens. Connections stay.
    fn while_it_rests(&self, change: impl FnOnce()) {
        let pauses = || {
            let ways = self.datagrams.iter().map(Numbered::pause);
            ways.chain(self.asking.iter().map(|client| &client.shared.pause))
        };
        pauses().for_each(|pause| pause.want(true));
        let is_so = || {
            pauses().all(Pause::has_begun)
                && self.datagrams.iter().all(|way| way.complaint(way.n_sent()).is_empty())
        };
        lab::wait_until("the load rests", is_so, String::new);
        change();
        pauses().for_each(|pause| pause.want(false));
    }

    /// Everything that was sent until now was answered.
    fn lost_nothing(&self, after: &str) {
        self.goes_on();
        let sent: Vec<u64> = self.datagrams.iter().map(Numbered::n_sent).collect();
        let missing =
            || -> String { self.datagrams.iter().zip(&sent).map(|(way, n)| way.complaint(*n)).collect() };
        let end = Instant::now() + LATE;
        while !missing().is_empty() && Instant::now() < end {
            thread::sleep(PACE);
        }
        assert_eq!(missing(), "", "after {after}");
        for client in &self.asking {
            assert_eq!(*client.shared.failure.lock().unwrap(), None, "{} after {after}", client.name);
        }
    }
}

impl Asking {
    /// One connection for all questions.
    fn held(name: &'static str, from: &Ns, to: (Ipv4Addr, u16)) -> Self {
        let mut stream = from.run(move || TcpStream::connect(to).unwrap());
        stream.set_read_timeout(Some(lab::PATIENCE)).unwrap();
        Self::start(name, move || {
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0; 4])
        })
    }

    /// A connection for each question.
    fn anew(name: &'static str, from: &Ns, to: (Ipv4Addr, u16)) -> Self {
        let from = Ns::open(Path::new(&from.path()));
        Self::start(name, move || lab::ask_tcp(&from, to, 10).map(drop))
    }

    fn start(name: &'static str, mut ask: impl FnMut() -> Result<(), io::Error> + Send + 'static) -> Self {
        let shared = Arc::new(Answers::default());
        let answers = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !answers.is_over.load(Ordering::Relaxed) {
                if answers.pause.is_on() {
                    thread::sleep(PACE);
                    continue;
                }
                if let Err(error) = ask() {
                    *answers.failure.lock().unwrap() = Some(error.to_string());
                    return;
                }
                answers.n_answered.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PACE);
            }
        });
        Self { name, shared, thread: Some(thread) }
    }

    fn n_answered(&self) -> u64 {
        self.shared.n_answered.load(Ordering::Relaxed)
    }

    fn has_failed(&self) -> bool {
        self.shared.failure.lock().unwrap().is_some()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _panicked = self.thread.take().map(JoinHandle::join);
    }
}

/// Makes what a killed driver has left that of an older version, as that would have left it.
fn make_older(node: &Node, changed: Changed) -> Vec<PathBuf> {
    let pins = &node.options.bpffs_dir;
    let rename = |what: &str, version: u32| {
        let older = pins.join(format!("{what}{}", version - 1));
        fs::rename(pins.join(format!("{what}{version}")), &older).unwrap();
        older
    };
    let mut older = Vec::new();
    if changed != Changed::Nothing {
        older.push(rename("v", ABI_VERSION));
        let links = older[0].join("links");
        node.ns.run(move || make_filters_older(&links));
    }
    if changed == Changed::FlowsToo {
        older.push(rename("flows", FLOW_LAYOUT));
    }
    older
}

/// The handle of all filters up to version 9.
const FIRST_HANDLE: u32 = 1;
const _: () = assert!(ABI_VERSION == 10, "the version before this one has its number as handle");

/// There is no moment without a filter.
fn make_filters_older(links: &Path) {
    for pin in fs::read_dir(links).unwrap().map(|entry| entry.unwrap().path()) {
        let Some(hook) = HookPin::parse(pin.file_name().unwrap().to_str().unwrap()) else { continue };
        let (HookMode::Clsact, Some(ifindex)) = (hook.mode, hook.ifindex) else { continue };
        let interface = if_indextoname(ifindex).unwrap().into_string().unwrap();
        let direction = if hook.program == ProgramId::MeshVxlanOut { "egress" } else { "ingress" };
        let filter = |verb: &str, version: u32, rest: &str| {
            let place = format!("dev {interface} {direction} protocol all prio 0x4d45 handle {version:#x}");
            lab::shell(&format!("tc filter {verb} {place} bpf {rest}"));
        };
        filter("add", FIRST_HANDLE, &format!("da object-pinned {}", pin.display()));
        filter("del", ABI_VERSION, "");
    }
}

fn takes_over(choose: impl Fn(&mut DriverOptions)) {
    let mut lab = Lab::new(choose);
    for port in ["sw11", "sw12"] {
        // What a switch of metal does by itself: checksums are complete, and frames are taken without a program.
        lab.switch.shell(&format!("ethtool -K {port} tx off gro on"));
    }
    lab.converge(1);
    let load = Load::start(&lab);
    load.lost_nothing("the beginning");
    let held: Vec<_> = [&lab.a, &lab.b].map(|node| node.driver().held_state()).into();

    for (revision, changed) in [(2, Changed::Nothing), (3, Changed::AllButFlows), (4, Changed::FlowsToo)] {
        lab.a.kill();
        lab.b.kill();
        load.lost_nothing("the drivers' end");
        let older: Vec<_> = [&lab.a, &lab.b].into_iter().flat_map(|node| make_older(node, changed)).collect();
        let mut start = || {
            lab.a.start();
            lab.b.start();
            lab.converge(revision);
        };
        // An answer finds its way by its flow. Where those begin anew, one that comes after the change is lost until its client
        // says something.
        if changed == Changed::FlowsToo {
            load.while_it_rests(start);
        } else {
            start();
        }

        load.lost_nothing(&format!("a start with another version of {changed:?}"));
        assert!(older.iter().all(|pins| !pins.exists()), "{older:?}");
        for (node, held) in [&lab.a, &lab.b].into_iter().zip(&held) {
            assert_eq!(node.driver().held_state(), *held);
            assert_eq!(count_filters(node), count_hooks(node, HookMode::Clsact));
        }
    }
}

/// BPF filters in the node, of whatever version.
fn count_filters(node: &Node) -> usize {
    node.ns.run(|| {
        let mut n_filters = 0;
        for link in &if_nameindex().unwrap() {
            for direction in ["ingress", "egress"] {
                let words = ["filter", "show", "dev", link.name().to_str().unwrap(), direction];
                // Fails where there is no such qdisc.
                let listed = Command::new("tc").args(words).output().unwrap();
                n_filters += String::from_utf8_lossy(&listed.stdout).matches("direct-action").count();
            }
        }
        n_filters
    })
}

fn count_hooks(node: &Node, mode: HookMode) -> usize {
    node.driver().held_state().hooks.values().filter(|held| **held == mode).count()
}

#[test]
fn tcx_links_are_taken_over() {
    takes_over(|_| {});
}

#[test]
fn filters_are_taken_over() {
    takes_over(|options| options.tc_attach = TcAttach::Clsact);
}

#[test]
fn xdp_is_taken_over() {
    takes_over(|options| options.ingress_hook = IngressHook::Xdp);
}
