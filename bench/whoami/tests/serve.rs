//! The real program on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longest wait for the program in these tests.
const PATIENCE: Duration = Duration::from_secs(30);

struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench-whoami"));
        command
            .args(["serve", "--port", "0", "--version", "7"])
            .env("TASK", "web.1.x")
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it serves");
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { child, addr: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).expect("small");
        // SAFETY: kill(2) takes two integers; the process is our child and has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads one answer of a connection that is kept alive.
fn answer(stream: &mut TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut text, mut len) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert_ne!(reader.read_line(&mut line).expect("an answer"), 0, "cut off after {text:?}");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            len = value.trim().parse().expect("a length");
        }
        text += &line;
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).expect("a body");
    text + &String::from_utf8(body).expect("text")
}

#[test]
fn answers_say_who_it_is_and_who_asked() {
    let server = Server::start();
    let mut stream = server.connect();
    for path in ["/", "/any?x=1"] {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
        let text = answer(&mut stream);
        let peer = stream.local_addr().expect("connected");
        for line in ["task: web.1.x", "version: 7", &format!("peer: {peer}"), &format!("request: GET {path}")]
        {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("Connection: keep-alive"), "{text}");
    }
    write!(stream, "NONSENSE\r\n\r\n").expect("sent");
    assert!(answer(&mut stream).starts_with("HTTP/1.1 400 "));
}

#[test]
fn a_signal_lets_open_requests_finish() {
    let mut server = Server::start();
    let (mut half, mut idle) = (server.connect(), server.connect());
    write!(half, "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab").expect("sent");
    write!(idle, "GET / HTTP/1.1\r\n\r\n").expect("sent");
    answer(&mut idle);
    server.terminate();
    // The listener is gone when connections are refused.
    while TcpStream::connect(server.addr).is_ok() {
        std::thread::yield_now();
    }
    write!(half, "cd").expect("sent");
    assert!(answer(&mut half).contains("Connection: close"));
    write!(idle, "GET / HTTP/1.1\r\n\r\n").expect("sent");
    assert!(answer(&mut idle).contains("Connection: close"));
    assert!(server.child.wait().expect("it ends").success());
}

#[test]
fn a_stream_is_finished_after_the_signal() {
    let mut server = Server::start();
    let mut stream = server.connect();
    write!(stream, "GET /stream?seconds=1&rate=1000 HTTP/1.1\r\n\r\n").expect("sent");
    let mut first = [0; 8];
    stream.read_exact(&mut first).expect("it has begun");
    server.terminate();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("its end");
    let body = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    assert_eq!(rest.len() - body, 1000);
    assert!(server.child.wait().expect("it ends").success());
    let server = Server::start();
    let mut stream = server.connect();
    write!(stream, "GET /stream?seconds=0 HTTP/1.1\r\n\r\n").expect("sent");
    assert!(answer(&mut stream).starts_with("HTTP/1.1 400 "));
}

#[test]
fn the_client_gets_and_checks() {
    let server = Server::start();
    let run = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_bench-whoami")).args(arguments).output().expect("it runs");
        (output.status.success(), String::from_utf8(output.stdout).expect("text"))
    };
    let url = format!("http://whoami.example:{}/", server.addr.port());
    let fixed = "whoami.example=127.0.0.1";
    let (good, text) = run(&["get", &url, "-n", "3", "--only", "version", "--resolve", fixed]);
    assert!(good);
    assert_eq!(text, "7\n7\n7\n");
    assert!(run(&["healthcheck", &format!("http://{}/", server.addr)]).0);
    assert!(!run(&["healthcheck", "http://127.0.0.1:1/"]).0);
    assert!(!run(&["get", "ftp://x"]).0);
}
