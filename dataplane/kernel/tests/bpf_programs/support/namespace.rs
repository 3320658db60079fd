//! Anonymous network namespaces: they go with the last file that refers to them.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::thread;

use ebpf_abi::Ip;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType};

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
        // No socket is given a port that a test chooses for its clients, 40000 to 43999. Not by reserving them: the kernel
        // would take the first behind them for each that it had picked among them, for one connection after another.
        namespace.sysctl("ipv4/ip_local_port_range", "44000 60999");
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

    /// Sends a frame as it is.
    pub fn send_frame(&self, interface: &str, frame: &[u8]) {
        let ifindex = i32::try_from(self.ifindex(interface)).unwrap();
        let family = u16::try_from(libc::AF_PACKET).unwrap();
        // SAFETY: zeros are a valid address, as are the members set.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        (to.sll_family, to.sll_ifindex, to.sll_halen) = (family, ifindex, 6);
        to.sll_addr[..6].copy_from_slice(&frame[..6]);
        let size = libc::socklen_t::try_from(size_of_val(&to)).unwrap();
        let sent = self.run(|| {
            let socket =
                socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
            // SAFETY: frame and address outlive the call, and are as long as it is told.
            unsafe {
                let to = std::ptr::from_ref(&to).cast();
                libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, size)
            }
        });
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", std::io::Error::last_os_error());
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
