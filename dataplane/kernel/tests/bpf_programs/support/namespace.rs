//! Anonymous network namespaces: they go with the last file that refers to them.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::thread;

use ebpf_abi::Ip;
use nix::sched::{CloneFlags, setns, unshare};

pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self(file.join().unwrap());
        // Router solicitations would be counted among a test's packets.
        if Path::new("/proc/sys/net/ipv6").exists() {
            namespace.sysctl("ipv6/conf/default/disable_ipv6", "1");
        }
        namespace.ip("link set lo up");
        namespace
    }

    /// A path that `ip … netns` takes.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
                .unwrap()
        })
    }

    /// `ip <arguments>` inside; it must succeed.
    pub fn ip(&self, arguments: &str) {
        self.sh(&format!("ip {arguments}"));
    }

    /// Lets an interface have IPv6, this address (of a /64), and nothing that the kernel adds or sends by itself.
    pub fn add_address6(&self, interface: &str, address: Ip) {
        for (name, value) in
            [("addr_gen_mode", "1"), ("router_solicitations", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")]
        {
            self.sysctl(&format!("ipv6/conf/{interface}/{name}"), value);
        }
        self.ip(&format!("addr add {address}/64 dev {interface} nodad"));
    }

    /// A command inside; it must succeed.
    pub fn sh(&self, command: &str) {
        let output = self.run(|| Command::new("sh").args(["-c", command]).output().unwrap());
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        self.run(|| {
            fs::write(format!("/proc/sys/net/{name}"), value)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        });
    }

    pub fn ifindex(&self, interface: &str) -> u32 {
        self.run(|| nix::net::if_::if_nametoindex(interface).unwrap())
    }

    /// The id of the namespace in which the other end of a veth pair is.
    pub fn peer_namespace(&self, interface: &str) -> u32 {
        let shown = self.run(|| Command::new("ip").args(["-o", "link", "show", interface]).output().unwrap());
        let shown = String::from_utf8(shown.stdout).unwrap();
        let id = shown.split_whitespace().skip_while(|word| *word != "link-netnsid").nth(1);
        id.unwrap_or_else(|| panic!("no id: {shown}")).parse().unwrap()
    }

    /// `SO_NETNS_COOKIE`.
    pub fn cookie(&self) -> u64 {
        const SO_NETNS_COOKIE: i32 = 71;
        self.run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            let mut cookie = 0_u64;
            let mut size = 8;
            // SAFETY: the kernel writes at most eight bytes to an integer of eight.
            let result = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    SO_NETNS_COOKIE,
                    std::ptr::from_mut(&mut cookie).cast(),
                    &raw mut size,
                )
            };
            assert_eq!(result, 0);
            cookie
        })
    }
}
