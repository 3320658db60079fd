//! Namespaces, a resolver and a DNS client for the tests of the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dataplane_dns::{DnsClient, Forwarding, NetworkZone, SandboxZone, ServerLaunch, Zones};
use dataplane_model::{NetworkKey, SandboxId};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DNS: &str = "127.0.0.11:53";

/// Moves this process, that has one thread yet, into a namespace of its own.
pub fn enter_own_netns() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    raise_loopback("/proc/self/ns/net");
}

pub fn complain(error: &dyn std::error::Error) -> i32 {
    eprintln!("{error}");
    1
}

fn raise_loopback(netns: &str) {
    let status = Command::new("nsenter")
        .arg(format!("--net={netns}"))
        .args(["ip", "link", "set", "lo", "up"])
        .status();
    assert!(status.expect("nsenter and ip are there").success());
}

/// Polls until `done`: for what nothing announces.
pub fn wait_for(patience: Duration, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < until, "this takes too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A directory with a socket; what is left of its process is killed in the end.
pub struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    pub fn new(name: &str) -> Self {
        println!("process: {name}");
        let directory = tempfile::Builder::new().prefix("dns-process-").tempdir().expect("a directory");
        let scene = Self { directory };
        scene.write("resolv.conf", "");
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file");
    }

    pub fn launch(&self) -> ServerLaunch {
        let args = ["serve".into(), self.path("dns.sock").into(), self.path("resolv.conf").into()];
        let program = std::env::current_exe().expect("this program");
        ServerLaunch { program, args: args.into(), log: Some(self.path("log")) }
    }

    pub fn client(&self) -> DnsClient {
        DnsClient::start(self.path("dns.sock"), Some(self.launch()))
    }

    pub fn server_pid(&self) -> String {
        std::fs::read_to_string(self.path("dns.sock.lock")).expect("the process wrote it")
    }

    pub fn kill_server(&self) {
        kill(Pid::from_raw(self.server_pid().parse().expect("a number")), Signal::SIGKILL).expect("it runs");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.path("dns.sock").exists() && std::thread::panicking() {
            self.kill_server();
        }
    }
}

/// An anonymous namespace with loopback.
pub struct Sandbox {
    netns: File,
}

impl Sandbox {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            File::open("/proc/thread-self/ns/net").expect("a namespace")
        });
        let sandbox = Self { netns: made.join().expect("the thread ends well") };
        raise_loopback(&sandbox.path().display().to_string());
        sandbox
    }

    /// For other processes too, as long as this one lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd()))
    }

    pub fn port_is_free(&self) -> bool {
        self.run(|| UdpSocket::bind(DNS).is_ok() && TcpListener::bind(DNS).is_ok())
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.netns, CloneFlags::CLONE_NEWNET).expect("root");
                work()
            });
            inside.join().expect("the thread ends well")
        })
    }
}

fn query(name: &str, record_type: RecordType) -> Vec<u8> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), record_type));
    message.to_vec().expect("a message")
}

/// `None` if no answer comes in time.
pub fn query_udp(sandbox: &Sandbox, name: &str, record_type: RecordType) -> Option<Message> {
    let query = query(name, record_type);
    sandbox.run(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time");
        socket.connect(DNS).expect("loopback");
        let mut reply = [0; 4096];
        socket.send(&query).ok()?;
        let len = socket.recv(&mut reply).ok()?;
        Message::from_vec(&reply[..len]).ok().filter(|reply| reply.metadata.id.to_be_bytes() == query[..2])
    })
}

pub fn query_tcp(sandbox: &Sandbox, name: &str, record_type: RecordType) -> Option<Message> {
    let query = query(name, record_type);
    sandbox.run(move || {
        let mut stream = TcpStream::connect(DNS).ok()?;
        let len = u16::try_from(query.len()).expect("a short query");
        stream.write_all(&[&len.to_be_bytes()[..], &query].concat()).ok()?;
        let mut len = [0; 2];
        stream.read_exact(&mut len).ok()?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut reply).ok()?;
        Message::from_vec(&reply).ok()
    })
}

/// A sandbox, the names in its network, and where other names go.
pub type Row<'a> = (&'a Sandbox, &'a [(&'a str, Ipv4Addr)], Forwarding);

/// Zones in which each sandbox has a network with names of its own.
pub fn zones(revision: u64, sandboxes: &[Row<'_>]) -> Zones {
    let mut zones = Zones { revision, ttl_s: 5, ..Zones::default() };
    for (index, (sandbox, names, forwarding)) in sandboxes.iter().enumerate() {
        let key = NetworkKey(u128::MAX - index as u128);
        let names: BTreeMap<_, _> =
            names.iter().map(|(name, address)| ((*name).to_owned(), vec![*address])).collect();
        let subnet = "10.0.1.0/24".parse().expect("a subnet");
        let zone = NetworkZone { name: format!("net{index}"), subnet, names, reverse: BTreeMap::new() };
        zones.networks.insert(key, zone);
        let zone = SandboxZone { netns: sandbox.path(), networks: vec![key], forwarding: forwarding.clone() };
        zones.sandboxes.insert(SandboxId(format!("sandbox{index}")), zone);
    }
    zones
}

/// A resolver that says the same to everyone, or nothing.
pub struct TestResolver {
    n_queries: Arc<AtomicU32>,
}

impl TestResolver {
    pub fn start(address: &str, answer: Option<Ipv4Addr>) -> Self {
        let socket = UdpSocket::bind((address, 53)).expect("a free address");
        let n_queries = Arc::new(AtomicU32::new(0));
        let count = n_queries.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((len, client)) = socket.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::SeqCst);
                if let Some(address) = answer {
                    reply(&socket, &buffer[..len], client, address);
                }
            }
        });
        Self { n_queries }
    }

    pub fn n_queries(&self) -> u32 {
        self.n_queries.load(Ordering::SeqCst)
    }
}

fn reply(socket: &UdpSocket, query: &[u8], client: SocketAddr, address: Ipv4Addr) {
    let mut message = Message::from_vec(query).expect("a query");
    message.metadata.message_type = MessageType::Response;
    let name = message.queries[0].name().clone();
    message.add_answer(Record::from_rdata(name, 60, RData::A(A(address))));
    socket.send_to(&message.to_vec().expect("a message"), client).expect("loopback");
}
