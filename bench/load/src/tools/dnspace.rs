//! DNS queries at a steady rate, each timed: how long answers take while the server has time to spare.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Place;

/// Header of a query that asks for recursion (RFC 1035 section 4.1.1), behind its id.
const HEADER: [u8; 10] = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
/// Type A, class IN (RFC 1035 sections 3.2.2 and 3.2.4).
const QUESTION: [u8; 4] = [0, 1, 0, 1];
/// How long answers are waited for after the last query.
const PATIENCE: Duration = Duration::from_millis(200);
/// Share of queries that may go without an answer.
const MAX_LOST: f64 = 0.01;

/// A load from one client, sent at its times whether or not answers come.
#[derive(Debug, Clone, Copy)]
pub struct PacedLoad<'a> {
    /// One label.
    pub name: &'a str,
    pub server: SocketAddr,
    pub per_second: f64,
    pub seconds: u32,
}

impl PacedLoad<'_> {
    /// 99 of 100 answers took at most this long, counted from when the query should have left.
    pub fn slowest_of_a_hundred(&self, place: &Place) -> Result<Duration> {
        let mut durations = place.inside(|| self.run())?;
        ensure!(!durations.is_empty(), "not one query was answered");
        durations.sort();
        Ok(durations[(durations.len() * 99 / 100).min(durations.len() - 1)])
    }

    fn run(&self) -> Result<Vec<Duration>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(self.server)?;
        socket.set_nonblocking(true)?;
        let mut query = self.query()?;
        let length = Duration::from_secs(self.seconds.into());
        let between = Duration::from_secs_f64(1.0 / self.per_second);
        let (mut due_of, mut durations) = (vec![None; 1 << 16], Vec::new());
        let (start, mut n_sent) = (Instant::now(), 0_u32);
        while start.elapsed() < length + PATIENCE {
            let due = start + between * n_sent;
            if start.elapsed() < length && Instant::now() >= due {
                let id = (n_sent & 0xffff) as u16;
                query[..2].copy_from_slice(&id.to_be_bytes());
                socket.send(&query)?;
                due_of[usize::from(id)] = Some(due);
                n_sent += 1;
            }
            if let Some(id) = receive(&socket)?
                && let Some(due) = due_of[usize::from(id)].take()
            {
                durations.push(due.elapsed());
            }
        }
        let n_answers = u32::try_from(durations.len())?;
        let lost = f64::from(n_sent - n_answers) / f64::from(n_sent.max(1));
        ensure!(lost <= MAX_LOST, "{:.1} % of the queries went without an answer", lost * 100.0);
        Ok(durations)
    }

    fn query(&self) -> Result<Vec<u8>> {
        let len = u8::try_from(self.name.len()).ok().filter(|len| *len < 64).context("a label is short")?;
        Ok([&[0, 0][..], &HEADER, &[len], self.name.as_bytes(), &[0], &QUESTION].concat())
    }
}

/// The id of an answer without error that is there; `None` if there is none.
fn receive(socket: &UdpSocket) -> Result<Option<u16>> {
    let mut answer = [0; 512];
    match socket.recv(&mut answer) {
        Ok(len) => {
            ensure!(len > 12 && answer[3] << 4 == 0, "the name was not found");
            Ok(Some(u16::from_be_bytes([answer[0], answer[1]])))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_on(server: SocketAddr) -> PacedLoad<'static> {
        PacedLoad { name: "web", server, per_second: 200.0, seconds: 1 }
    }

    #[test]
    fn a_query_is_as_the_rfc_has_it() {
        let query = load_on((Ipv4Addr::LOCALHOST, 53).into()).query().unwrap();
        assert_eq!(query, b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01");
    }

    /// Answers every query by itself with this code, also what is asked again on a busy machine. Ends with the process.
    fn serve(code: u8) -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((len, client)) = socket.recv_from(&mut query) {
                query[3] = code;
                socket.send_to(&query[..len], client).unwrap();
            }
        });
        address
    }

    #[test]
    fn answers_are_timed_and_failures_told() {
        let here = Place::at("/proc/self/ns/net");
        let slowest = load_on(serve(0)).slowest_of_a_hundred(&here).unwrap();
        assert!(slowest > Duration::ZERO);
        let refused = load_on(serve(3)).slowest_of_a_hundred(&here).unwrap_err();
        assert!(refused.to_string().contains("not found"), "{refused}");
    }
}
