//! Leaves port 53 of a sandbox to its container: a server in it that binds `0.0.0.0:53` (a DNS server, of all things)
//! could not do so beside a socket on `127.0.0.11:53`. Ours is bound to a free port, and the numbers of the two are
//! exchanged where packets enter the loopback link: packet by packet, no connection is tracked, no other link is touched.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};

use super::netns::DNS_ADDRESS;

/// Opens the sockets of the namespace that this thread is in. Where ports can't be exchanged they are bound to
/// [`DNS_ADDRESS`] itself: names are worth more than the container's port.
pub fn listen() -> io::Result<(UdpSocket, TcpListener)> {
    let free = SocketAddr::from((*DNS_ADDRESS.ip(), 0));
    let (udp, tcp) = (UdpSocket::bind(free)?, TcpListener::bind(free)?);
    match exchange(udp.local_addr()?.port(), tcp.local_addr()?.port()) {
        Ok(()) => Ok((udp, tcp)),
        Err(error) => {
            tracing::warn!(%error, "containers can't have port 53 of their own");
            Ok((UdpSocket::bind(DNS_ADDRESS)?, TcpListener::bind(DNS_ADDRESS)?))
        }
    }
}

/// Lets these ports of ours stand behind [`DNS_ADDRESS`]; takes the place of what an earlier process left.
fn exchange(udp_port: u16, tcp_port: u16) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(rules(udp_port, tcp_port).as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    written.unwrap_or(Ok(()))
}

/// One transaction: there is no moment without rules once there were any.
fn rules(udp_port: u16, tcp_port: u16) -> String {
    let (address, port) = (DNS_ADDRESS.ip(), DNS_ADDRESS.port());
    let pair = |protocol: &str, ours: u16| {
        format!(
            "ip daddr {address} {protocol} dport {port} {protocol} dport set {ours}\n\
             ip saddr {address} {protocol} sport {ours} {protocol} sport set {port}\n"
        )
    };
    format!(
        "table netdev meshd_dns\ndelete table netdev meshd_dns\ntable netdev meshd_dns {{\n\
         chain names {{\ntype filter hook ingress device lo priority 0; policy accept;\n{}{}}}\n}}\n",
        pair("udp", udp_port),
        pair("tcp", tcp_port)
    )
}
