//! Request and response over one TCP connection: one byte there, one byte back, then the next. Measures the latency of
//! a path and not its width.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::netns::Place;

/// Where the server listens.
const PORT: u16 = 5202;

/// A byte that takes longer than this is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Exchanges per second between a client in `from` and a server in `to` at `address`.
pub fn exchanges_per_second(from: &Place, to: &Place, address: Ipv4Addr, seconds: u32) -> Result<f64> {
    let listener = to.inside(|| Ok(TcpListener::bind((address, PORT))?))?;
    let server = std::thread::spawn(move || echo(&listener));
    let length = Duration::from_secs(u64::from(seconds));
    let rate = from.inside(|| ask(SocketAddr::from((address, PORT)), length));
    if rate.is_err() {
        // The server may still wait for a client: give it one that ends at once.
        let _ = to.inside(|| Ok(TcpStream::connect((address, PORT))?));
    }
    let echoed = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let rate = rate?;
    echoed?;
    Ok(rate)
}

/// Echoes one client until it ends.
fn echo(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ask(address: SocketAddr, length: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let start = Instant::now();
    let mut n_exchanges = 0_u32;
    let mut byte = [0];
    while start.elapsed() < length {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        n_exchanges += 1;
    }
    Ok(f64::from(n_exchanges) / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_there_and_back() {
        let here = Place::at("/proc/self/ns/net");
        assert!(exchanges_per_second(&here, &here, Ipv4Addr::LOCALHOST, 1).unwrap() > 1.0);
    }
}
