//! Turns what the user says of addresses (`--advertise-addr eth0:2377`) into addresses, as Docker does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use ipnetwork::IpNetwork;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

/// Default port of the cluster's control plane.
pub const DEFAULT_PORT: u16 = 2377;

/// The kernel's list of IPv6 addresses, of the calling thread's network namespace.
const IPV6_LIST: &str = "/proc/thread-self/net/if_inet6";
/// Flags of an address that comes or goes (`if_addr.h`): temporary, failed or not yet through the search for duplicates,
/// deprecated. Nobody should be told of it.
const FLEETING: u8 = 0x01 | 0x08 | 0x40 | 0x20;

/// A text that names no address of this node, in Docker's words where it has some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error(
        "could not choose an IP address to advertise since this system has multiple addresses {0} - specify one with --advertise-addr"
    )]
    Several(String),
    #[error("could not find the system's IP address - specify one with --advertise-addr")]
    NoneFound,
    #[error(
        "advertise address must be a non-zero IP address or network interface (with optional port number)"
    )]
    AdvertiseUnspecified,
    #[error(
        "advertise address {0} is not of the family that this node listens on ({1}): give an address of its family with --listen-addr"
    )]
    OtherFamily(IpAddr, SocketAddr),
    #[error("data path address must be a non-zero IP")]
    DataPathUnspecified,
    #[error("{0} must be an IP address or network interface (with optional port number)")]
    Unreadable(String),
    #[error("interface {0} has more than one {1} address ({2} and {3})")]
    InterfaceSeveral(String, &'static str, IpAddr, IpAddr),
    #[error("interface {0} has no usable IPv4 or IPv6 addresses")]
    InterfaceNone(String),
}

/// Addresses of the node's interfaces: name, address; loopback and interfaces that are down are left out, and those
/// that the daemon makes itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemAddresses(pub BTreeMap<String, Vec<IpAddr>>);

impl SystemAddresses {
    /// Reads them from the kernel, in the caller's network namespace.
    fn read() -> nix::Result<Self> {
        let mut interfaces = BTreeMap::<String, Vec<IpAddr>>::new();
        // There is no list where the kernel has no IPv6.
        let fleeting = fleeting(&std::fs::read_to_string(IPV6_LIST).unwrap_or_default());
        for interface in getifaddrs()? {
            let flags = interface.flags;
            if !flags.contains(InterfaceFlags::IFF_UP)
                || flags.contains(InterfaceFlags::IFF_LOOPBACK)
                || is_own(&interface.interface_name)
            {
                continue;
            }
            let Some(address) = interface.address else { continue };
            let ip = (address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())))
                .or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
            if let Some(ip) = ip.filter(|ip| is_global(*ip) && !fleeting.contains(ip)) {
                interfaces.entry(interface.interface_name).or_default().push(ip);
            }
        }
        Ok(Self(interfaces))
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.0.values().flatten().copied()
    }

    /// The node's one IPv4 address, or if it has none its one IPv6 address; several are the user's choice.
    fn single(&self) -> Result<IpAddr, AddressError> {
        let all = || self.0.iter().flat_map(|(name, list)| list.iter().map(move |ip| (name, *ip)));
        let has_v4 = all().any(|(_, ip)| ip.is_ipv4());
        let mut preferred = all().filter(|(_, ip)| ip.is_ipv4() == has_v4);
        match (preferred.next(), preferred.next()) {
            (Some((_, ip)), None) => Ok(ip),
            (None, _) => Err(AddressError::NoneFound),
            (Some(first), Some(second)) => {
                let place = |(name, ip): (&String, IpAddr)| format!("({ip} on interface {name})");
                Err(AddressError::Several(format!("{} and {}", place(first), place(second))))
            }
        }
    }

    fn of_interface(&self, name: &str) -> Option<Result<IpAddr, AddressError>> {
        let list = self.0.get(name)?;
        let has_v4 = list.iter().any(IpAddr::is_ipv4);
        let mut preferred = list.iter().copied().filter(|ip| ip.is_ipv4() == has_v4);
        let family = if has_v4 { "IPv4" } else { "IPv6" };
        Some(match (preferred.next(), preferred.next()) {
            (Some(ip), None) => Ok(ip),
            (Some(first), Some(second)) => {
                Err(AddressError::InterfaceSeveral(name.to_owned(), family, first, second))
            }
            (None, _) => Err(AddressError::InterfaceNone(name.to_owned())),
        })
    }
}

/// The node's addresses as they were last read: that they can't be read does not mean that there are none.
#[derive(Debug, Default)]
pub struct KnownAddresses(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    last: SystemAddresses,
    fails: bool,
}

impl KnownAddresses {
    /// Those of now, or else the last ones, which is logged once.
    pub fn read(&self) -> SystemAddresses {
        self.take(SystemAddresses::read())
    }

    fn take(&self, read: nix::Result<SystemAddresses>) -> SystemAddresses {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failed_before = std::mem::replace(&mut known.fails, read.is_err());
        match read {
            Ok(now) => known.last = now,
            Err(error) if !failed_before => {
                tracing::warn!(%error, "this node's addresses can't be read; the last known ones hold");
            }
            Err(_) => {}
        }
        known.last.clone()
    }
}

/// The networks that this node is in, of the caller's network namespace; by interfaces that are down too, they may come up.
pub fn own_networks() -> nix::Result<Vec<IpNetwork>> {
    let network = |interface: InterfaceAddress| {
        let (address, mask) = (interface.address?, interface.netmask?);
        let v4 = address.as_sockaddr_in().zip(mask.as_sockaddr_in());
        let v6 = address.as_sockaddr_in6().zip(mask.as_sockaddr_in6());
        let (ip, mask): (IpAddr, IpAddr) = (v4.map(|(ip, mask)| (ip.ip().into(), mask.ip().into())))
            .or_else(|| v6.map(|(ip, mask)| (ip.ip().into(), mask.ip().into())))?;
        if is_own(&interface.interface_name) || !is_global(ip) {
            return None;
        }
        IpNetwork::with_netmask(ip, mask).ok()
    };
    Ok(getifaddrs()?.filter_map(network).collect())
}

/// Interfaces that the daemon makes: their addresses are no way to reach the node.
fn is_own(name: &str) -> bool {
    name == "docker_gwbridge" || name == "docker0" || name == "mesh-vx" || name.starts_with("mv")
}

fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}

/// The addresses of the list that come and go. A line is: address, index, prefix length, scope, flags, interface.
fn fleeting(list: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        let flags = u8::from_str_radix(words.nth(3)?, 16).ok()?;
        (flags & FLEETING != 0).then_some(IpAddr::V6(Ipv6Addr::from_bits(address)))
    };
    list.lines().filter_map(address).collect()
}

/// Where this node is reached and listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub listen: SocketAddr,
    pub advertise: SocketAddr,
    /// All tunnels of a cluster are of one family: that of its first node's.
    pub data_path: IpAddr,
}

impl Addresses {
    /// Resolves the three texts; an empty one is chosen: listen on all addresses of the advertised one's family (IPv6 takes
    /// IPv4 too), advertise the node's one address, tunnel from the advertised address.
    pub fn resolve(
        system: &SystemAddresses,
        listen: &str,
        advertise: &str,
        data_path: &str,
    ) -> Result<Self, AddressError> {
        let listen = match listen {
            "" => None,
            text => Some(parse(system, text, DEFAULT_PORT)?),
        };
        let port = listen.map_or(DEFAULT_PORT, |listen| listen.port());
        let advertise = match (advertise, listen) {
            ("", Some(listen)) if !listen.ip().is_unspecified() => listen,
            ("", _) => SocketAddr::new(system.single()?, port),
            (text, _) => parse(system, text, port)?,
        };
        if advertise.ip().is_unspecified() {
            return Err(AddressError::AdvertiseUnspecified);
        }
        let any: IpAddr =
            if advertise.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let listen = listen.unwrap_or(SocketAddr::new(any, port));
        let is_own = system.all().any(|ip| ip == advertise.ip());
        let is_heard = listen.is_ipv4() == advertise.is_ipv4() || listen.ip() == Ipv6Addr::UNSPECIFIED;
        if is_own && !is_heard {
            return Err(AddressError::OtherFamily(advertise.ip(), listen));
        }
        let data_path = match data_path {
            // An advertised address that is not the node's own (of a load balancer) can't be a tunnel's end.
            "" if is_own => advertise.ip(),
            "" => system.single().unwrap_or(advertise.ip()),
            text => parse(system, text, 0)?.ip(),
        };
        if data_path.is_unspecified() {
            return Err(AddressError::DataPathUnspecified);
        }
        Ok(Self { listen, advertise, data_path })
    }
}

/// `ADDRESS|INTERFACE[:PORT]`.
fn parse(system: &SystemAddresses, text: &str, default_port: u16) -> Result<SocketAddr, AddressError> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(SocketAddr::new(ip, default_port));
    }
    let unreadable = || AddressError::Unreadable(text.to_owned());
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().map_err(|_| unreadable())?),
        None => (text, default_port),
    };
    let ip = system.of_interface(name).ok_or_else(unreadable)??;
    Ok(SocketAddr::new(ip, port))
}

/// A manager to join, `HOST[:PORT]`. Resolves names.
pub async fn resolve_remote(text: &str) -> Result<Vec<SocketAddr>, std::io::Error> {
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, DEFAULT_PORT)]);
    }
    let with_port = match text.parse::<SocketAddr>() {
        Ok(addr) => return Ok(vec![addr]),
        Err(_) if text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
            text.to_owned()
        }
        Err(_) => format!("{text}:{DEFAULT_PORT}"),
    };
    Ok(tokio::net::lookup_host(with_port).await?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(list: &[(&str, &[&str])]) -> SystemAddresses {
        let parse = |ips: &[&str]| ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        SystemAddresses(list.iter().map(|(name, ips)| ((*name).to_owned(), parse(ips))).collect())
    }

    fn resolve(system: &SystemAddresses, texts: [&str; 3]) -> Result<String, String> {
        let [listen, advertise, data_path] = texts;
        Addresses::resolve(system, listen, advertise, data_path)
            .map(|a| format!("{} {} {}", a.listen, a.advertise, a.data_path))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_can_not_be_read_is_as_it_was() {
        let known = KnownAddresses::default();
        assert_eq!(
            known.take(Err(nix::errno::Errno::ENOBUFS)),
            SystemAddresses::default(),
            "nothing is known"
        );
        let (first, second) = (system(&[("eth0", &["198.18.0.11"])]), system(&[("eth0", &["198.18.0.12"])]));
        assert_eq!(known.take(Ok(first.clone())), first);
        for _ in 0..2 {
            assert_eq!(known.take(Err(nix::errno::Errno::EMFILE)), first);
        }
        assert_eq!(known.take(Ok(second.clone())), second);
        assert_eq!(
            known.take(Ok(SystemAddresses::default())),
            SystemAddresses::default(),
            "none is an answer"
        );
    }

    /// As `ip -6 address` shows it, and what of it is announced: neither link-local addresses nor those that pass.
    #[test]
    fn addresses_of_both_families_that_stay_are_announced() {
        let list = "20010db8000000000000000000000011 02 40 00 80     eth0\n\
                    20010db800000000a1b2c3d4e5f60718 02 40 00 01     eth0\n\
                    20010db8000000000000000000000012 02 40 00 a0     eth0\n\
                    20010db8000000000000000000000013 02 40 00 c0     eth0\n\
                    fd000000000000000000000000000001 02 40 00 00     eth0\n\
                    not an address\n";
        let found: Vec<String> = fleeting(list).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["2001:db8::12", "2001:db8::13", "2001:db8::a1b2:c3d4:e5f6:718"]);
        let announced = |text: &str| is_global(text.parse().expect("an address"));
        assert!(announced("2001:db8::11") && announced("fd00::1") && announced("198.18.0.11"));
        assert!(!announced("fe80::1") && !announced("::1") && !announced("169.254.0.1"));
    }

    /// In a namespace of its own, with real interfaces.
    #[test]
    fn the_kernels_addresses_are_read() {
        let read = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            for command in [
                "ip link add eth0 type veth peer name eth1",
                "ip link set eth0 up",
                "ip addr add 198.18.0.11/24 dev eth0",
                "ip addr add fd00::11/64 dev eth0 nodad",
                "ip addr add fd00::12/64 dev eth0 nodad preferred_lft 0",
            ] {
                let words: Vec<&str> = command.split_whitespace().collect();
                let status = std::process::Command::new(words[0]).args(&words[1..]).status().expect("ip");
                assert!(status.success(), "{command}");
            }
            SystemAddresses::read().expect("interfaces")
        });
        let found = read.join().expect("no panic");
        assert_eq!(found, system(&[("eth0", &["198.18.0.11", "fd00::11"])]));
    }

    #[test]
    fn one_address_is_chosen_by_itself() {
        let one = system(&[("eth0", &["198.18.0.11", "fd00::1"])]);
        assert_eq!(resolve(&one, ["", "", ""]), Ok("0.0.0.0:2377 198.18.0.11:2377 198.18.0.11".into()));
        assert_eq!(
            resolve(&one, ["eth0:4000", "", ""]),
            Ok("198.18.0.11:4000 198.18.0.11:4000 198.18.0.11".into())
        );
    }

    #[test]
    fn several_addresses_must_be_chosen_from() {
        let two = system(&[("eth0", &["198.18.0.11"]), ("eth1", &["10.1.0.1"])]);
        let error = resolve(&two, ["", "", ""]).expect_err("unclear");
        assert!(
            error.starts_with("could not choose an IP address to advertise since this system has multiple"),
            "{error}"
        );
        assert_eq!(resolve(&two, ["", "eth1", ""]), Ok("0.0.0.0:2377 10.1.0.1:2377 10.1.0.1".into()));
        assert_eq!(
            resolve(&two, ["", "10.1.0.1:99", "eth0"]),
            Ok("0.0.0.0:2377 10.1.0.1:99 198.18.0.11".into())
        );
    }

    #[test]
    fn a_node_of_ipv6_listens_is_reached_and_tunnels_there() {
        let v6 = system(&[("eth0", &["fd00::1"])]);
        let all = Ok("[::]:2377 [fd00::1]:2377 fd00::1".to_owned());
        for texts in [["", "", ""], ["", "[fd00::1]:2377", ""], ["[::]:2377", "eth0", ""]] {
            assert_eq!(resolve(&v6, texts), all, "{texts:?}");
        }
        let both = system(&[("eth0", &["198.18.0.11", "fd00::1", "fd00::2"])]);
        let chosen = resolve(&both, ["", "fd00::2", ""]);
        assert_eq!(chosen, Ok("[::]:2377 [fd00::2]:2377 fd00::2".into()));
        let chosen = resolve(&both, ["", "", "fd00::2"]);
        assert_eq!(chosen, Ok("0.0.0.0:2377 198.18.0.11:2377 fd00::2".into()));
        let two = system(&[("eth0", &["fd00::1", "fd00::2"])]);
        let error = resolve(&two, ["", "", ""]).expect_err("unclear");
        assert!(error.contains("fd00::1") && error.contains("fd00::2"), "{error}");
        let error = resolve(&two, ["", "eth0", ""]).expect_err("unclear");
        assert!(error.contains("more than one IPv6 address"), "{error}");
    }

    #[test]
    fn an_address_of_a_load_balancer_is_advertised_but_no_tunnel_end() {
        let one = system(&[("eth0", &["198.18.0.11"])]);
        assert_eq!(
            resolve(&one, ["", "203.0.113.1", ""]),
            Ok("0.0.0.0:2377 203.0.113.1:2377 198.18.0.11".into())
        );
    }

    #[test]
    fn what_names_nothing_is_refused() {
        let one = system(&[("eth0", &["198.18.0.11"]), ("eth1", &[]), ("v6", &["fd00::1"])]);
        for texts in [
            ["nope", "", ""],
            ["", "eth0:port", ""],
            ["", "0.0.0.0", ""],
            ["", "eth1", ""],
            ["", "", "0.0.0.0"],
            ["", "", "::"],
            ["", "[::]:2377", ""],
            ["0.0.0.0:2377", "fd00::1", ""],
            ["[fd00::1]:2377", "198.18.0.11", ""],
        ] {
            resolve(&one, texts).expect_err("refused");
        }
        resolve(&system(&[]), ["", "", ""]).expect_err("no address at all");
    }
}
