//! The HTTP server: a thread per connection, connections kept alive.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::drain::{
    DRAIN_DEFAULT, LINGER, OpenConnection, is_stopping, stop_on_signal, wait_for_connections,
};
use crate::http::{HEAD_LEN_MAX, RequestHead, head_len, parse_request, response, stream_head};
use crate::identity::Identity;
use crate::stream::{self, CHUNK_PERIOD, StreamRequest};
use crate::{CommandResult, any, canonical, option, positional};

const DEFAULT_PORT: u16 = 80;
/// Threads at once: each has a small stack; a demo's load is far below.
const CONNECTIONS_MAX: usize = 4096;
const STACK_LEN: usize = 128 << 10;
/// An idle connection is closed after this.
const IDLE_MAX: Duration = Duration::from_mins(1);
/// How often a connection that waits looks whether the server is to end.
const WAKE: Duration = Duration::from_millis(100);
/// A body is read and thrown away; more than this closes the connection.
const BODY_LEN_MAX: usize = 64 << 20;

/// `serve [--port N] [--version TEXT] [--drain SECONDS]`.
pub fn serve(options: &[&str]) -> CommandResult {
    if let Some(word) = positional(options, &["--port", "--version", "--drain"])?.first() {
        return Err(format!("unknown command {word}; see whoami --help"));
    }
    let port = option(options, "--port").map_or(Ok(DEFAULT_PORT), str::parse);
    let port = port.map_err(|_| "--port needs a port number".to_owned())?;
    let from_environment = std::env::var("VERSION").unwrap_or_default();
    let version = option(options, "--version").unwrap_or(&from_environment);
    let drain = option(options, "--drain").map(|text| text.parse().map(Duration::from_secs));
    let drain = drain.unwrap_or(Ok(DRAIN_DEFAULT)).map_err(|_| "--drain needs seconds".to_owned())?;
    run(port, version, drain).map_err(|error| format!("serve on port {port}: {error}"))
}

fn run(port: u16, version: &str, drain: Duration) -> io::Result<()> {
    let listener = TcpListener::bind((any(), port))?;
    stop_on_signal(&listener)?;
    let identity = Arc::new(Identity::of_this_process(version));
    println!("whoami: serving on {}", listener.local_addr()?);
    loop {
        match listener.accept() {
            Ok((stream, _)) => spawn(stream, Arc::clone(&identity)),
            Err(_) if is_stopping() => break,
            // The peer has gone again, or descriptors are short: neither ends a server.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    drop(listener);
    wait_for_connections(drain);
    Ok(())
}

fn spawn(stream: TcpStream, identity: Arc<Identity>) {
    let Some(open) = OpenConnection::new(CONNECTIONS_MAX) else { return };
    let thread = std::thread::Builder::new().stack_size(STACK_LEN);
    // Without a thread the connection is dropped, which its client sees.
    let _ = thread.spawn(move || {
        // A connection's error ends the connection alone.
        let _ = Connection { stream, received: Vec::new() }.serve(&identity);
        drop(open);
    });
}

struct Connection {
    stream: TcpStream,
    /// Bytes that were read and not used yet.
    received: Vec<u8>,
}

impl Connection {
    fn serve(mut self, identity: &Identity) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(WAKE))?;
        let (local, remote) = (canonical(self.stream.local_addr()?), canonical(self.stream.peer_addr()?));
        while let Some(head) = self.next_head()? {
            let Some(request) = parse_request(&head) else {
                return self.stream.write_all(&response("400 Bad Request", "bad request\n", false, true));
            };
            self.skip_body(&request)?;
            match stream::parse(&request.target) {
                Some(Ok(asked)) => return self.send_stream(asked, identity),
                Some(Err(why)) => {
                    return self.stream.write_all(&response("400 Bad Request", &why, false, true));
                }
                None => {}
            }
            let keep_alive = request.keep_alive && !is_stopping();
            let body = identity.answer(local, remote, &request.method, &request.target);
            self.stream.write_all(&response("200 OK", &body, keep_alive, request.method != "HEAD"))?;
            if !keep_alive {
                break;
            }
        }
        Ok(())
    }

    /// The long answer, at its pace and to its end, also when the server is to end.
    fn send_stream(&mut self, asked: StreamRequest, identity: &Identity) -> io::Result<()> {
        self.stream.write_all(&stream_head(asked.len(), &identity.task))?;
        let start = Instant::now();
        for number in 0..asked.n_chunks {
            std::thread::sleep((CHUNK_PERIOD * number).saturating_sub(start.elapsed()));
            self.stream.write_all(&asked.chunk(number))?;
        }
        Ok(())
    }

    /// The next request's head; `None` at the end of the connection.
    fn next_head(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut idle_since = Instant::now();
        let mut stopping = false;
        loop {
            if let Some(len) = head_len(&self.received) {
                let rest = self.received.split_off(len);
                return Ok(Some(std::mem::replace(&mut self.received, rest)));
            }
            if self.received.len() > HEAD_LEN_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if is_stopping() && !stopping {
                (stopping, idle_since) = (true, Instant::now());
            }
            if idle_since.elapsed() >= if stopping { LINGER } else { IDLE_MAX } {
                return Ok(None);
            }
            if self.receive()? == Some(0) {
                return Ok(None);
            }
        }
    }

    fn skip_body(&mut self, request: &RequestHead) -> io::Result<()> {
        if request.body_len > BODY_LEN_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut open = request.body_len;
        let start = Instant::now();
        loop {
            let used = open.min(self.received.len());
            self.received.drain(..used);
            open -= used;
            if open == 0 {
                return Ok(());
            }
            if start.elapsed() >= IDLE_MAX || self.receive()? == Some(0) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads what there is: `Some(0)` at the end, `None` when it is only time to look around.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(len) => {
                self.received.extend_from_slice(&chunk[..len]);
                Ok(Some(len))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}
