//! UDP echo and its client.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use crate::dns::resolve_service;
use crate::drain::exit_on_signal;
use crate::{CommandResult, any, canonical};

/// Longest datagram over IPv4.
const DATAGRAM_LEN_MAX: usize = 65_507;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends every datagram back to its sender, behind the sender's address, until a signal comes.
pub fn listen(port: &str) -> CommandResult {
    let port: u16 = port.parse().map_err(|_| "listen-udp needs a port number".to_owned())?;
    let failed = |error| format!("udp port {port}: {error}");
    let socket = UdpSocket::bind((any(), port)).map_err(failed)?;
    exit_on_signal().map_err(failed)?;
    println!("whoami: echoing on udp port {port}");
    let mut bytes = vec![0; DATAGRAM_LEN_MAX];
    loop {
        // An error is about a peer (an ICMP message): the next one may be well.
        if let Ok((len, peer)) = socket.recv_from(&mut bytes) {
            let answer = [format!("{} ", canonical(peer)).as_bytes(), &bytes[..len]].concat();
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// Sends one datagram and prints the answer.
pub fn ask(target: &str, text: &str) -> CommandResult {
    let (host, port) = target.rsplit_once(':').ok_or("udp needs ADDRESS:PORT")?;
    let port: u16 = port.parse().map_err(|_| "udp needs ADDRESS:PORT")?;
    let address = *resolve_service(host)?.first().ok_or("no address")?;
    let answer = exchange((address, port).into(), text).map_err(|error| format!("{target}: {error}"))?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn exchange(target: std::net::SocketAddr, text: &str) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.send(text.as_bytes())?;
    let mut bytes = vec![0; DATAGRAM_LEN_MAX];
    let len = socket.recv(&mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}
