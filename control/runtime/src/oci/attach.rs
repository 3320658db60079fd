//! The streams of a container's own process, by conmon's socket: byte for byte, and no faster than they are taken. Each packet
//! that comes begins with a byte that says which stream it is of; each that goes is input.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use control_model::OutputStream;
use control_model::standalone::ConsoleSize;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, recv, send, shutdown, socket,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWrite, DuplexStream, Interest};
use tokio::sync::{mpsc, oneshot};

use super::paths::TaskPaths;
use super::{ControlError, Oci};

/// conmon reads its container's output in pieces of 8 KiB, and says the stream before each.
const PACKET_LEN: usize = (8 << 10) + 1;
/// Input that goes at a time: less than conmon takes.
const INPUT_LEN: usize = 8 << 10;
/// Pieces on their way to a client.
const MAX_PIECES: usize = 4;
/// conmon's numbers of streams.
const STDOUT: u8 = 2;
const STDERR: u8 = 3;
/// conmon's word for a new size of the terminal.
const RESIZE: u8 = 1;

/// The streams of a container's process.
pub struct Attachment {
    /// Shut down or dropped, the process reads the end, if its input ends with its first client's.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Everything that it writes from now on; of one that does not run yet, from its start. Ends with it.
    pub output: mpsc::Receiver<(OutputStream, Vec<u8>)>,
}

/// conmon's end of a container's streams, or who waits for there to be one.
#[derive(Debug, Default)]
pub(super) struct Attaching(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// There is a conmon to connect to.
    is_open: bool,
    waiting: Vec<oneshot::Sender<AttachSocket>>,
}

/// A socket, or who will have one.
enum Given {
    Now(AttachSocket),
    Later(oneshot::Receiver<AttachSocket>),
}

impl Attaching {
    pub fn new(is_running: bool) -> Self {
        Self(Mutex::new(State { is_open: is_running, waiting: Vec::new() }))
    }

    /// Connects who waits. The process has not begun: they miss nothing.
    pub fn open(&self, paths: &TaskPaths) {
        let mut state = self.locked();
        state.is_open = true;
        for waiting in state.waiting.drain(..) {
            match AttachSocket::connect(paths) {
                // Who has gone needs none.
                Ok(socket) => drop(waiting.send(socket)),
                Err(error) => tracing::warn!(container = paths.container_id, %error, "not attached"),
            }
        }
    }

    /// The process has ended, or did not begin: nobody waits for it any longer.
    pub fn close(&self) {
        *self.locked() = State::default();
    }

    fn give(&self, paths: &TaskPaths) -> io::Result<Given> {
        let mut state = self.locked();
        if state.is_open {
            return AttachSocket::connect(paths).map(Given::Now);
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting.retain(|waiting| !waiting.is_closed());
        state.waiting.push(sender);
        Ok(Given::Later(receiver))
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Oci {
    /// The streams of the container with this id, also of one that is still to start. Needs a tokio runtime.
    pub fn attach(&self, container_id: &str, with_input: bool) -> Result<Attachment, ControlError> {
        let unknown = || ControlError::Unknown(container_id.to_owned());
        let container = self.container_by_id(container_id).ok_or_else(unknown)?;
        let (pieces, output) = mpsc::channel(MAX_PIECES);
        let (near, far) = tokio::io::duplex(INPUT_LEN);
        let (input, far) = if with_input { (Some(near), Some(far)) } else { (None, None) };
        let given = container.attaching.give(&container.paths);
        let ends_input = container.ends_input();
        // Who waits holds no container: one that is removed is waited for no longer.
        drop(container);
        tokio::spawn(async move {
            let socket = match given {
                Ok(Given::Now(socket)) => Some(socket),
                Ok(Given::Later(socket)) => tokio::select! {
                    socket = socket => socket.ok(),
                    () = pieces.closed() => None,
                },
                // It has just ended.
                Err(_) => None,
            };
            if let Some(socket) = socket {
                socket.converse((far, ends_input), &pieces).await;
            }
        });
        Ok(Attachment { input: input.map(|input| Box::new(input) as _), output })
    }

    /// Sizes the terminal of the container with this id; without one there is nothing to size.
    pub fn resize(&self, container_id: &str, size: ConsoleSize) -> Result<(), ControlError> {
        let info = self.list_containers().into_iter().find(|one| one.record.container_id == container_id);
        let info = info.ok_or_else(|| ControlError::Unknown(container_id.to_owned()))?;
        let container = self.container(info.record.task).filter(|_| info.state == "running");
        let container = container.ok_or_else(|| ControlError::NotRunning(container_id.to_owned()))?;
        if !info.record.tty {
            return Ok(());
        }
        let written = || {
            let fifo = container.paths.bundle().join("ctl");
            // Without a reader there is no conmon, and an opening that waits would wait for ever.
            let mut fifo = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(fifo)?;
            fifo.write_all(format!("{RESIZE} {} {}\n", size.rows, size.columns).as_bytes())
        };
        written().map_err(|error: io::Error| ControlError::Failed(error.to_string()))
    }
}

/// A connection to conmon.
#[derive(Debug)]
struct AttachSocket(AsyncFd<OwnedFd>);

impl AttachSocket {
    fn connect(paths: &TaskPaths) -> io::Result<Self> {
        let made = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        // A socket's path has 107 bytes at most, and the bundle's may have more.
        let bundle = File::open(paths.bundle())?;
        let through_fd = format!("/proc/self/fd/{}/attach", bundle.as_raw_fd());
        connect(made.as_raw_fd(), &UnixAddr::new(through_fd.as_str())?)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: the registration owns the descriptor, so it stays open and the same until the registration is gone.
        Ok(Self(unsafe { AsyncFd::register_with_interest(made, interest) }?))
    }

    /// Passes on what either side says until the process has ended, or the client is gone.
    async fn converse(
        self,
        (input, ends_input): (Option<DuplexStream>, bool),
        pieces: &mpsc::Sender<(OutputStream, Vec<u8>)>,
    ) {
        let speaks = async {
            if let Some(input) = input
                && self.pass_input(input).await
                && ends_input
            {
                // One that has ended reads no end.
                let _ = shutdown(self.0.as_raw_fd(), Shutdown::Write);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.pass_output(pieces) => {}
            () = speaks => {}
        }
    }

    async fn pass_output(&self, pieces: &mpsc::Sender<(OutputStream, Vec<u8>)>) {
        let mut packet = vec![0; PACKET_LEN];
        loop {
            let read = self
                .0
                .async_io(Interest::READABLE, |fd| Ok(recv(fd.as_raw_fd(), &mut packet, MsgFlags::empty())?));
            let n_read = tokio::select! {
                read = read => read.unwrap_or(0),
                () = pieces.closed() => return,
            };
            let Some((number, bytes)) = packet[..n_read].split_first() else { return };
            let stream = match *number {
                STDOUT => OutputStream::Stdout,
                STDERR => OutputStream::Stderr,
                _ => continue,
            };
            if pieces.send((stream, bytes.to_vec())).await.is_err() {
                return;
            }
        }
    }

    /// True at the client's end; false if conmon takes no more.
    async fn pass_input(&self, mut input: DuplexStream) -> bool {
        let mut piece = vec![0; INPUT_LEN];
        loop {
            let n_read = input.read(&mut piece).await.unwrap_or(0);
            if n_read == 0 {
                return true;
            }
            let sent = self.0.async_io(Interest::WRITABLE, |fd| {
                Ok(send(fd.as_raw_fd(), &piece[..n_read], MsgFlags::MSG_NOSIGNAL)?)
            });
            if sent.await.is_err() {
                return false;
            }
        }
    }
}
