//! Namespaces, resolvers and DNS clients for the tests of the process.

pub mod resolver;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dataplane_dns::{
    DnsClient, Forwarding, NetworkZone, SandboxZone, ServerLaunch, ServerOptions, TtlPolicy, Zones,
    run_server,
};
use dataplane_model::{NetworkKey, SandboxId};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DNS: &str = "127.0.0.11:53";

/// Moves this process, that has one thread yet, into a namespace of its own.
pub fn enter_own_netns() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    raise_loopback("/proc/self/ns/net");
}

/// Nothing here takes longer than milliseconds, but what waits for a time-out; this is for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// `<program> serve <socket> <resolv.conf>` is the DNS process; does not return then.
pub fn serve_if_told() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, command, socket, resolv_conf] = &args[..]
        && command == "serve"
    {
        let options = ServerOptions { socket: socket.into(), resolv_conf: resolv_conf.into() };
        std::process::exit(run_server(&options).map_or_else(|error| complain(&error), |()| 0));
    }
}

fn complain(error: &dyn std::error::Error) -> i32 {
    eprintln!("{error}");
    1
}

/// Returns when zones of this revision are served everywhere.
pub async fn served(client: &DnsClient, revision: u64) {
    let mut status = client.status();
    let done = status.wait_for(|now| now.connected && now.revision == revision && now.failed.is_empty());
    tokio::time::timeout(PATIENCE, done)
        .await
        .expect("the zones are served in time")
        .expect("the client lives");
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

    /// What the C library's resolver finds in here with this `resolv.conf`; `None` if there is no such host.
    pub fn getent(&self, resolv_conf: &Path, name: &str) -> Option<String> {
        let script =
            format!("mount --bind {} /etc/resolv.conf && getent ahosts {name}", resolv_conf.display());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .args(["unshare", "--mount", "sh", "-c", &script]);
        let output = command.output().expect("nsenter, unshare and getent are there");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sockets that are open in here, whoever has them.
    pub fn n_udp_sockets(&self) -> usize {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/udp").expect("proc is there"));
        table.lines().count() - 1
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.netns, CloneFlags::CLONE_NEWNET).expect("root");
                work()
            });
            inside.join().expect("the thread ends well")
        })
    }
}

pub fn query(name: &str, record_type: RecordType) -> Vec<u8> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), record_type));
    message.to_vec().expect("a message")
}

/// `None` if no answer comes in time.
pub fn query_udp(sandbox: &Sandbox, name: &str, record_type: RecordType) -> Option<Message> {
    ask_udp(sandbox, &query(name, record_type))
}

/// The same for any query.
pub fn ask_udp(sandbox: &Sandbox, query: &[u8]) -> Option<Message> {
    sandbox.run(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time");
        socket.connect(DNS).expect("loopback");
        let mut reply = [0; 4096];
        socket.send(query).ok()?;
        let len = socket.recv(&mut reply).ok()?;
        Message::from_vec(&reply[..len]).ok().filter(|reply| reply.metadata.id.to_be_bytes() == query[..2])
    })
}

pub fn query_tcp(sandbox: &Sandbox, name: &str, record_type: RecordType) -> Option<Message> {
    let mut client = TcpClient::connect(sandbox);
    client.send(name, record_type);
    client.receive()
}

/// One connection from inside a sandbox.
pub struct TcpClient(TcpStream);

impl TcpClient {
    pub fn connect(sandbox: &Sandbox) -> Self {
        let stream = sandbox.run(|| TcpStream::connect(DNS).expect("the server listens"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        Self(stream)
    }

    /// Returns the query's id.
    pub fn send(&mut self, name: &str, record_type: RecordType) -> u16 {
        let query = query(name, record_type);
        let len = u16::try_from(query.len()).expect("a short query");
        self.send_bytes(&[&len.to_be_bytes()[..], &query].concat());
        u16::from_be_bytes([query[0], query[1]])
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the connection is open");
    }

    /// Says that no more queries come.
    pub fn finish(&mut self) {
        self.0.shutdown(std::net::Shutdown::Write).expect("the connection is open");
    }

    /// The next reply; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Message> {
        let mut len = [0; 2];
        self.0.read_exact(&mut len).ok()?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(len))];
        self.0.read_exact(&mut reply).ok()?;
        Message::from_vec(&reply).ok()
    }

    /// Nothing comes for a moment.
    pub fn is_silent(&self) -> bool {
        self.0.set_read_timeout(Some(Duration::from_millis(300))).expect("a time");
        let silent = self.0.peek(&mut [0]).is_err();
        self.0.set_read_timeout(Some(PATIENCE)).expect("a time");
        silent
    }
}

/// A sandbox, the names in its network, and where other names go.
pub type Row<'a> = (&'a Sandbox, &'a [(&'a str, Ipv4Addr)], Forwarding);

/// Zones in which each sandbox has a network with names of its own.
pub fn zones(revision: u64, sandboxes: &[Row<'_>]) -> Zones {
    let mut zones = Zones { revision, ttl: TtlPolicy::default(), ..Zones::default() };
    for (index, (sandbox, names, forwarding)) in sandboxes.iter().enumerate() {
        let key = NetworkKey(u128::MAX - index as u128);
        let names: BTreeMap<_, _> =
            names.iter().map(|(name, address)| ((*name).to_owned(), vec![(*address).into()])).collect();
        let zone = NetworkZone { name: format!("net{index}"), names, ..NetworkZone::default() };
        zones.networks.insert(key, zone);
        let zone = SandboxZone {
            netns: sandbox.path(),
            networks: vec![key],
            forwarding: forwarding.clone(),
            keeps_short_names: false,
        };
        zones.sandboxes.insert(SandboxId(format!("sandbox{index}")), zone);
    }
    zones
}
