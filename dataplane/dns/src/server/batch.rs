//! Datagrams by the dozen: one system call takes all that wait, one sends all answers.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use crate::response::MAX_UDP_LEN;

/// Datagrams that one call takes. Their buffers are touched only as far as they are used.
pub const BATCH_LEN: usize = 32;

/// Length of one query's buffer, bytes.
const QUERY_LEN: usize = MAX_UDP_LEN as usize;

/// Room for the queries of one call, and their lengths and senders.
pub struct Queries {
    buffer: Vec<u8>,
    received: Vec<(usize, SocketAddrV4)>,
}

impl Queries {
    pub fn new() -> Self {
        Self { buffer: vec![0; BATCH_LEN * QUERY_LEN], received: Vec::with_capacity(BATCH_LEN) }
    }

    /// Takes what waits in `socket`; `WouldBlock` if nothing does.
    pub fn receive(&mut self, socket: &impl AsRawFd) -> io::Result<usize> {
        self.received.clear();
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH_LEN, None);
        let mut slices: Vec<_> =
            self.buffer.chunks_exact_mut(QUERY_LEN).map(|chunk| [IoSliceMut::new(chunk)]).collect();
        let messages =
            recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        for message in messages {
            let sender = message.address.map_or(SocketAddrV4::new([0; 4].into(), 0), SocketAddrV4::from);
            self.received.push((message.bytes, sender));
        }
        Ok(self.received.len())
    }

    pub fn len(&self) -> usize {
        self.received.len()
    }

    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// The queries of the last call, with their senders.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], SocketAddrV4)> {
        let chunks = self.buffer.chunks_exact(QUERY_LEN);
        chunks.zip(&self.received).map(|(chunk, (len, sender))| (&chunk[..*len], *sender))
    }
}

/// Answers that wait for one call; the buffers are used again.
#[derive(Default)]
pub struct Replies {
    buffers: Vec<Vec<u8>>,
    clients: Vec<Option<SockaddrIn>>,
}

impl Replies {
    /// A buffer for the next answer, that counts once it is [`Self::commit`]ted.
    pub fn next_buffer(&mut self) -> &mut Vec<u8> {
        let index = self.clients.len();
        if self.buffers.len() == index {
            self.buffers.push(Vec::new());
        }
        &mut self.buffers[index]
    }

    /// What is in the last buffer goes to `client`.
    pub fn commit(&mut self, client: SocketAddrV4) {
        self.clients.push(Some(SockaddrIn::from(client)));
    }

    /// Sends all. What the socket does not take is lost, as UDP is.
    pub fn send(&mut self, socket: &impl AsRawFd) {
        let slices: Vec<_> =
            self.buffers.iter().take(self.clients.len()).map(|b| [IoSlice::new(b)]).collect();
        let mut sent = 0;
        while sent < self.clients.len() {
            let mut headers = MultiHeaders::preallocate(slices.len() - sent, None);
            let clients = &self.clients[sent..];
            let flags = MsgFlags::MSG_DONTWAIT;
            match sendmmsg(socket.as_raw_fd(), &mut headers, &slices[sent..], clients, [], flags) {
                Ok(results) => sent += results.count().max(1),
                Err(Errno::EAGAIN) => break,
                // The first one can't be sent; the others are tried.
                Err(_) => sent += 1,
            }
        }
        drop(slices);
        self.clients.clear();
    }
}
