//! Two nodes `a` (198.18.0.11) and `b` (198.18.0.12) and a client (198.18.0.100) on one bridge, each in a network
//! namespace, each node with a driver of its own. One service `web` with a task per node: task 5 on `a`, task 6 on `b`.

pub mod namespace;
pub mod numbered;
pub mod picture;
pub mod seam;
pub mod view;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dataplane_driver::{Driver, DriverOptions};
use dataplane_model::{DataPlane as _, NodeView, Report, SandboxId, SandboxStatus};
pub use namespace::{Ns, shell};

/// Long enough for a busy machine, and for an emulated one that loads the programs in half a minute; short enough for a
/// test that fails.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 100);
pub const NODE_A: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 11);
pub const NODE_B: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 12);

pub struct Lab {
    pub switch: Ns,
    pub client: Ns,
    pub a: Node,
    pub b: Node,
}

/// A node: its namespace, its directories, and its driver while it runs.
pub struct Node {
    pub ns: Ns,
    pub options: DriverOptions,
    pub driver: Option<Driver>,
    dir: PathBuf,
}

impl Lab {
    /// `choose` may change the nodes' options before their drivers start.
    pub fn new(choose: impl Fn(&mut DriverOptions)) -> Self {
        let switch = Ns::new();
        switch.run(|| {
            shell("ip link add br0 type bridge");
            shell("ip link set br0 up");
        });
        let client = Ns::new();
        plug(&switch, &client, CLIENT);
        let node = |vtep| {
            let ns = Ns::new();
            plug(&switch, &ns, vtep);
            Node::new(ns, &choose)
        };
        let (a, b) = (node(NODE_A), node(NODE_B));
        Self { switch, client, a, b }
    }

    /// Both nodes have what `views` say.
    pub fn converge(&self, revision: u64) {
        self.a.converge(view::of_node(revision, NODE_A));
        self.b.converge(view::of_node(revision, NODE_B));
    }
}

impl Node {
    fn new(ns: Ns, choose: &impl Fn(&mut DriverOptions)) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("meshd-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(&dir).unwrap();
        let mut options = DriverOptions::new(dir.clone(), PathBuf::from("/sys/fs/bpf").join(&name));
        choose(&mut options);
        let mut node = Self { ns, options, driver: None, dir };
        node.start();
        node
    }

    pub fn start(&mut self) {
        let options = self.options.clone();
        self.driver = Some(self.ns.run(move || Driver::start(&options).expect("the driver starts")));
    }

    /// The same over a kernel in which the test has a say.
    pub fn start_with(&mut self, say: seam::Say) {
        let options = self.options.clone();
        self.driver = Some(self.ns.run(move || seam::start(&options, say)));
    }

    /// The driver goes as if it was killed: nothing is undone.
    pub fn kill(&mut self) {
        drop(self.driver.take());
    }

    pub fn driver(&self) -> &Driver {
        self.driver.as_ref().expect("it runs")
    }

    /// Returns when the kernel holds `view` and all sandboxes are ready.
    pub fn converge(&self, view: NodeView) {
        let revision = view.revision;
        let sandboxes: Vec<SandboxId> = view.sandboxes.keys().cloned().collect();
        self.driver().set_view(view);
        let is_ready =
            |report: &Report, id| matches!(report.sandboxes.get(id), Some(SandboxStatus::Ready { .. }));
        let is_done = |report: &Report| {
            report.applied_revision >= revision && sandboxes.iter().all(|id| is_ready(report, id))
        };
        let reports = self.driver().watch();
        wait_until(
            "the view is applied",
            || is_done(&reports.borrow()),
            || format!("{:#?}", *reports.borrow()),
        );
    }

    /// A sandbox of this node.
    pub fn sandbox(&self, task: u8) -> Ns {
        Ns::open(&self.options.netns_dir().join(format!("task{task}")))
    }

    /// Removes all that the driver made.
    pub fn tear_down(&mut self) {
        let Some(driver) = self.driver.take() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(driver.tear_down()).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.driver.is_none() && self.options.bpffs_dir.exists() {
            self.start();
        }
        if let Some(driver) = self.driver.take() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            if let Err(error) = runtime.block_on(driver.tear_down()) {
                eprintln!("tear-down: {error}");
            }
        }
        let _removed = fs::remove_dir_all(&self.dir);
    }
}

pub fn wait_until(what: &str, is_so: impl Fn() -> bool, picture: impl Fn() -> String) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: {}", picture());
        thread::sleep(Duration::from_millis(5));
    }
}

/// A veth pair between the switch and `ns`, with `up0` there.
fn plug(switch: &Ns, ns: &Ns, address: Ipv4Addr) {
    let port = format!("sw{}", address.octets()[3]);
    let (path, to) = (ns.path(), port.clone());
    switch.run(move || {
        shell(&format!("ip link add {to} type veth peer name up0 netns {path}"));
        shell(&format!("ip link set {to} master br0 up"));
    });
    ns.run(move || {
        shell("ip link set lo up");
        shell(&format!("ip addr add {address}/24 dev up0"));
        shell("ip link set up0 up");
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    });
}

/// Answers every connection in `ns` with `<name> <address of the client>` and the number of bytes that it was sent.
pub fn serve_tcp(ns: &Ns, port: u16, name: &'static str) {
    serve_tcp_at(ns, (Ipv4Addr::UNSPECIFIED, port), name);
}

/// The same at an address.
pub fn serve_tcp_at(ns: &Ns, at: (impl Into<IpAddr>, u16), name: &'static str) {
    let at = SocketAddr::from(at);
    let listener = ns.run(move || TcpListener::bind(at).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let client = stream.peer_addr().unwrap();
                let mut sent = Vec::new();
                // The client ends its side when it has sent all.
                let _read = stream.read_to_end(&mut sent);
                let _written = write!(stream, "{name} {client} {}", sent.len());
            });
        }
    });
}

/// Answers whatever comes, as long as something comes, with its name in four bytes.
pub fn serve_greetings(ns: &Ns, port: u16, name: &'static str) {
    let listener = ns.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                while stream.read(&mut [0; 64]).is_ok_and(|n_bytes| n_bytes > 0) {
                    let _written = stream.write_all(format!("{name:4}").as_bytes());
                }
            });
        }
    });
}

/// Answers every datagram in `ns` with `<name> <address of the client>`; from an unbound source address.
pub fn serve_udp(ns: &Ns, port: u16, name: &'static str) {
    serve_udp_at(ns, (Ipv4Addr::UNSPECIFIED, port), name);
}

/// The same at an address.
pub fn serve_udp_at(ns: &Ns, at: (impl Into<IpAddr>, u16), name: &'static str) {
    let at = SocketAddr::from(at);
    let socket = ns.run(move || UdpSocket::bind(at).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _sent = socket.send_to(format!("{name} {client}").as_bytes(), client);
        }
    });
}

/// What a server answers to `n_bytes` sent from `ns`.
pub fn ask_tcp(ns: &Ns, to: (impl Into<IpAddr>, u16), n_bytes: usize) -> Result<String, std::io::Error> {
    let to = SocketAddr::from(to);
    ns.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&vec![b'x'; n_bytes])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

pub fn ask_udp(ns: &Ns, to: (Ipv4Addr, u16)) -> Result<String, std::io::Error> {
    ns.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.connect(to)?;
        socket.send(b"?")?;
        let mut buffer = [0; 2048];
        let n_bytes = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..n_bytes]).into_owned())
    })
}
