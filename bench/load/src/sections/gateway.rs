//! The web server's peers of the mesh: client, gateways and server on a bridge.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tempfile::NamedTempFile;

use crate::netns::{Namespace, Place};
use crate::process::Background;
use crate::tools::nginx::Nginx;

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// The client's towards a gateway with IPVS, see [`forward_by_ipvs`].
const CLIENT_OF_IPVS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 3);
/// Gateways count up from here.
const FIRST_GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);

/// Where the web server listens.
const SERVER_PORT: u16 = 9080;
/// Where a gateway's rules forward from.
const DNAT_PORT: u16 = 9081;
const HAPROXY_PORT: u16 = 9082;
/// Published ports that nobody asks count up from here.
const FIRST_OTHER_PORT: u16 = 10_000;

/// How a gateway forwards, and how its rules are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// One rule per port, as Docker writes them; the one that is asked is the last.
    List(u16),
    /// One rule with a map of this many ports.
    Map(u16),
    /// The kernel's own load balancer, where there is one. One gateway may be of this kind.
    Ipvs,
}

/// A web server on a bridge, with a client and gateways that forward to it.
pub struct Gateways {
    _nginx: Nginx,
    client: Namespace,
    forwarders: Vec<Namespace>,
    _server: Namespace,
    _bridge: Namespace,
}

impl Gateways {
    /// One gateway for each set of rules.
    pub fn start(rules: &[Rules]) -> Result<Self> {
        let bridge = Namespace::new("br")?;
        bridge.add_bridge()?;
        let place = |role: &str, address: Ipv4Addr| {
            let namespace = Namespace::new(role)?;
            bridge.plug(&namespace, role, &format!("{address}/24"))?;
            namespace.place().allow_short_connections()?;
            anyhow::Ok(namespace)
        };
        let (client, server) = (place("cl", CLIENT)?, place("sv", SERVER)?);
        let mut forwarders = Vec::new();
        for (index, rules) in (0..).zip(rules) {
            let gateway = place(&format!("gw{index}"), address_of(index))?;
            match ruleset(*rules) {
                Some(ruleset) => forward_by_nftables(gateway.place(), &ruleset)?,
                None => forward_by_ipvs(&client, gateway.place(), address_of(index), &server)?,
            }
            forwarders.push(gateway);
        }
        let nginx = Nginx::start(server.place(), (SERVER, SERVER_PORT).into())?;
        Ok(Self { _nginx: nginx, client, forwarders, _server: server, _bridge: bridge })
    }

    pub fn client(&self) -> &Place {
        self.client.place()
    }

    /// Where the server itself listens.
    pub fn direct() -> SocketAddr {
        (SERVER, SERVER_PORT).into()
    }

    /// Where the gateway with the rules at this place forwards from.
    pub fn forwarded(index: u8) -> SocketAddr {
        (address_of(index), DNAT_PORT).into()
    }
}

fn address_of(gateway: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST_GATEWAY) + u32::from(gateway))
}

/// As Docker's own rules do it: the destination is translated, and the source, so that the answer comes back this way.
fn forward_by_nftables(gateway: &Place, ruleset: &str) -> Result<()> {
    let mut file = NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, ruleset.as_bytes())?;
    gateway.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
    gateway.run("nft", &["-f", &file.path().display().to_string()]).map(drop)
}

/// IPVS as it is quickest with translation (NAT): the destination alone, nothing tracked but by itself. Answers have to come
/// back this way, so the client asks it from an address of its own to which the server's way leads here.
fn forward_by_ipvs(client: &Namespace, gateway: &Place, address: Ipv4Addr, server: &Namespace) -> Result<()> {
    client.ip(&format!("addr add {CLIENT_OF_IPVS}/24 dev eth0"))?;
    client.ip(&format!("route add {address} dev eth0 src {CLIENT_OF_IPVS}"))?;
    server.ip(&format!("route add {CLIENT_OF_IPVS} via {address}"))?;
    gateway.run("sh", &["-c", FORWARD_ON_ONE_LINK])?;
    let service = format!("{address}:{DNAT_PORT}");
    let backend = format!("{SERVER}:{SERVER_PORT}");
    gateway.run("ipvsadm", &["-A", "-t", &service, "-s", "rr"])?;
    gateway.run("ipvsadm", &["-a", "-t", &service, "-r", &backend, "-m"]).map(drop)
}

/// Forwards, and tells nobody of a shorter way.
const FORWARD_ON_ONE_LINK: &str = "cd /proc/sys/net/ipv4; echo 1 > ip_forward; \
    for link in all eth0; do echo 0 > conf/$link/send_redirects; done";

/// `None` where there are none.
fn ruleset(rules: Rules) -> Option<String> {
    let mut text = format!(
        "add table ip bench\n\
         add chain ip bench prerouting {{ type nat hook prerouting priority dstnat; }}\n\
         add chain ip bench postrouting {{ type nat hook postrouting priority srcnat; }}\n\
         add rule ip bench postrouting ip daddr {SERVER} masquerade\n"
    );
    let ports = |n_rules: u16| (1..n_rules).map(|number| FIRST_OTHER_PORT + number).chain([DNAT_PORT]);
    match rules {
        Rules::Ipvs => return None,
        Rules::List(n_rules) => {
            for port in ports(n_rules) {
                writeln!(
                    text,
                    "add rule ip bench prerouting tcp dport {port} dnat to {SERVER}:{SERVER_PORT}"
                )
                .expect("a string takes all");
            }
        }
        Rules::Map(n_ports) => {
            let elements: Vec<String> =
                ports(n_ports).map(|port| format!("{port} : {SERVER} . {SERVER_PORT}")).collect();
            writeln!(
                text,
                "add rule ip bench prerouting dnat ip to tcp dport map {{ {} }}",
                elements.join(", ")
            )
            .expect("a string takes all");
        }
    }
    Some(text)
}

/// A proxy on the first gateway, in TCP mode: it moves bytes between two connections and reads none of them.
pub struct Haproxy {
    pub client: Place,
    _proxy: Background,
    _configuration: NamedTempFile,
}

impl Haproxy {
    pub fn start(gateways: &Gateways) -> Result<Self> {
        let gateway = gateways.forwarders[0].place();
        let mut file = NamedTempFile::new()?;
        let address = Self::address();
        let configuration = format!(
            "global\n  maxconn 4000\ndefaults\n  mode tcp\n\
             \x20 timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             listen web\n  bind {address}\n  server a {SERVER}:{SERVER_PORT}\n"
        );
        std::io::Write::write_all(&mut file, configuration.as_bytes())?;
        let mut command = gateway.command("haproxy");
        command.arg("-db").arg("-f").arg(file.path());
        let mut proxy = Background::start(command)?;
        proxy.wait_for_port(gateway, address)?;
        Ok(Self { client: gateways.client().clone(), _proxy: proxy, _configuration: file })
    }

    /// Where it listens.
    pub fn address() -> SocketAddr {
        (address_of(0), HAPROXY_PORT).into()
    }
}
