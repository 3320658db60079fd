//! The API over TCP: who is let in, by the real CLI, and who is not.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::certificates::Certificates;
use common::cli::{Output, programs};
use common::engine::container;
use common::{Daemon, world};
use control_api::{Host, TlsFiles, serve};
use control_model::{OutputLine, OutputStream, Task, Timestamp};
use control_store::ReplicatedStore as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest time that anything may take here.
const LIMIT: Duration = Duration::from_mins(1);
/// More than the server has under way at a time.
const N_SILENT: usize = 200;
/// As many as it lets in.
const MAX_CONNECTIONS: usize = 256;

/// A daemon whose API is also at an address, and the certificates for it.
struct Remote {
    daemon: Daemon,
    address: SocketAddr,
    own: Certificates,
    _server: JoinSet<()>,
}

impl Remote {
    async fn start() -> Self {
        let daemon = Daemon::manager().await;
        let own = Certificates::make(&daemon.path("own"), "127.0.0.1");
        let config = server_files(&own).load().expect("good files");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (node, mut server) = (daemon.node.clone(), JoinSet::new());
        server.spawn(async move {
            let hosts = vec![Host::Tls(listener, config)];
            serve(hosts, node, std::future::pending()).await.expect("the API is served");
        });
        Self { daemon, address, own, _server: server }
    }

    fn line(&self, client: &Certificates, line: &str) -> String {
        format!("{} -H tcp://{} {line}", client.client_options(&self.own).join(" "), self.address)
    }

    /// The program with the certificate of `client`.
    async fn docker_as(&self, client: &Certificates, program: &str, line: &str, input: &[u8]) -> Output {
        self.daemon.docker_by(program, &self.line(client, line), input).await
    }

    /// A connection after its handshake with the certificate of `client`, if that comes to anything.
    async fn connect(&self, client: Option<&Certificates>) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        TlsConnector::from(client_config(&self.own, client)).connect(name, stream).await
    }

    /// The reply to a request on `connection`; an error, or nothing, if it is cut.
    async fn ping(connection: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
        connection.write_all(b"GET /_ping HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut reply = Vec::new();
        while !reply.ends_with(b"OK") && connection.read_buf(&mut reply).await? > 0 {}
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }
}

fn server_files(of: &Certificates) -> TlsFiles {
    TlsFiles { ca: of.file("ca.pem"), cert: of.file("server.pem"), key: of.file("server-key.pem") }
}

fn client_config(roots: &Certificates, client: Option<&Certificates>) -> Arc<ClientConfig> {
    let certificate =
        |of: &Certificates, name: &str| CertificateDer::from_pem_file(of.file(name)).expect("a certificate");
    let mut trusted = RootCertStore::empty();
    trusted.add(certificate(roots, "ca.pem")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config =
        config.with_safe_default_protocol_versions().expect("versions").with_root_certificates(trusted);
    Arc::new(match client {
        Some(client) => {
            let key = PrivateKeyDer::from_pem_file(client.file("client-key.pem")).expect("a key");
            config.with_client_auth_cert(vec![certificate(client, "client.pem")], key).expect("a pair")
        }
        None => config.with_no_client_auth(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cli_works_over_tcp_as_over_the_socket() {
    let remote = Remote::start().await;
    for program in programs() {
        let run = async |line: &str, input: &[u8]| {
            let output = remote.docker_as(&remote.own, program, line, input).await;
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{program} {line}");
            output.stdout
        };
        assert_eq!(run("node ls --format {{.Hostname}}", b"").await, "m1\nw1\nw2\n", "{program}");
        run("service create -d --no-resolve-image --name web --constraint node.hostname==m1 whoami:v1", b"")
            .await;
        remote.daemon.running("web", 1).await;
        let task = remote.daemon.store.state().tasks().iter().next().expect("made").clone();
        assert_eq!(task.node, Some(world::MANAGER));
        *remote.daemon.engine.containers.lock().expect("no panic") = vec![container(&task)];
        let name = task.name();
        assert_eq!(run(&format!("exec {name} echo a b"), b"").await, "a b\n", "{program}");
        // What is larger than any buffer on its way goes both ways, and its end is seen.
        let bytes = vec![b'x'; 3 << 20];
        assert!(
            run(&format!("exec -i {name} cat"), &bytes).await.as_bytes() == bytes,
            "{program}: all comes back"
        );
        let failed = remote.docker_as(&remote.own, program, &format!("exec {name} other"), b"").await;
        assert_eq!((failed.code, failed.stderr.as_str()), (3, "it failed\n"), "{program}");
        follows_output(&remote, program, &task).await;
        run("service rm web", b"").await;
        remote.daemon.until(|state| state.tasks().iter().next().is_none()).await;
    }
}

/// A stream that goes on: what there is comes at once.
async fn follows_output(remote: &Remote, program: &str, task: &Task) {
    let line = OutputLine { at: Timestamp(1), stream: OutputStream::Stdout, text: b"one\n".to_vec() };
    remote.daemon.engine.outputs.lock().expect("no panic").insert(task.id.container_id(), vec![line]);
    let line = remote.line(&remote.own, &format!("logs -f {}", task.name()));
    let mut following = remote.daemon.started(program, &line);
    let mut lines = BufReader::new(following.stdout.take().expect("piped")).lines();
    let first = timeout(LIMIT, lines.next_line()).await.expect("it comes").expect("text");
    assert_eq!(first.as_deref(), Some("one"), "{program}");
    following.kill().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_certificate_of_the_roots_is_kept_out() {
    let remote = Remote::start().await;
    let other = Certificates::make(&remote.daemon.path("other"), "127.0.0.1");
    for program in programs() {
        let refused = remote.docker_as(&other, program, "node ls", b"").await;
        assert!(refused.code != 0 && refused.stdout.is_empty(), "{program}: {refused:?}");
        assert!(refused.stderr.contains("tls: "), "{program}: {refused:?}");
    }
    for client in [None, Some(&other)] {
        // By TLS 1.3 a client takes itself for let in until it hears otherwise.
        let reply = match remote.connect(client).await {
            Ok(mut connection) => Remote::ping(&mut connection).await,
            Err(error) => Err(error),
        };
        let error = reply.expect_err("it is told").to_string();
        assert!(error.contains("alert"), "{error}");
    }
    let mut plain = TcpStream::connect(remote.address).await.expect("connected");
    plain.write_all(b"GET /info HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut reply = Vec::new();
    // The rest of what it sent may be answered by a reset.
    let _ = plain.read_to_end(&mut reply).await;
    assert!(!String::from_utf8_lossy(&reply).contains("HTTP"), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_say_nothing_hold_up_nobody_and_are_cut() {
    let remote = Remote::start().await;
    let mut silent = Vec::new();
    for _ in 0..N_SILENT {
        silent.push(TcpStream::connect(remote.address).await.expect("connected"));
    }
    let mut connection = remote.connect(Some(&remote.own)).await.expect("let in");
    assert!(Remote::ping(&mut connection).await.expect("a reply").starts_with("HTTP/1.1 200 OK"));
    for mut stream in silent {
        let mut nothing = Vec::new();
        let read = timeout(LIMIT, stream.read_to_end(&mut nothing)).await.expect("it is cut");
        assert_eq!((read.unwrap_or_default(), nothing.as_slice()), (0, &b""[..]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_only_so_many_connections() {
    let remote = Remote::start().await;
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut connection = remote.connect(Some(&remote.own)).await.expect("let in");
        assert!(Remote::ping(&mut connection).await.expect("a reply").ends_with("OK"));
        open.push(connection);
    }
    let ping = async || match remote.connect(Some(&remote.own)).await {
        Ok(mut connection) => Remote::ping(&mut connection).await.unwrap_or_default(),
        Err(_) => String::new(),
    };
    assert_eq!(ping().await, "", "there is no room");
    open.pop();
    let freed = async { while ping().await.is_empty() {} };
    timeout(LIMIT, freed).await.expect("there is room again");
}

#[test]
fn files_that_can_not_be_used_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let (one, other) = (
        Certificates::make(&dir.path().join("one"), "127.0.0.1"),
        Certificates::make(&dir.path().join("other"), "127.0.0.1"),
    );
    let good = server_files(&one);
    good.load().expect("good files");
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "nothing\n").expect("written");
    let broken = dir.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").expect("written");
    let missing = dir.path().join("missing.pem");
    let shown = |path: &std::path::Path| path.display().to_string();
    for (files, words) in [
        (TlsFiles { ca: missing.clone(), ..good.clone() }, format!("can't read {}", shown(&missing))),
        (
            TlsFiles { ca: empty.clone(), ..good.clone() },
            format!("{} has no certificate in PEM", shown(&empty)),
        ),
        (TlsFiles { cert: broken.clone(), ..good.clone() }, format!("{} is not valid PEM", shown(&broken))),
        (
            TlsFiles { key: one.file("server.pem"), ..good.clone() },
            format!("{} has no private key in PEM that is not encrypted", shown(&one.file("server.pem"))),
        ),
        (
            TlsFiles { key: other.file("server-key.pem"), ..good.clone() },
            format!(
                "{} and {} are no certificate with its key",
                shown(&one.file("server.pem")),
                shown(&other.file("server-key.pem"))
            ),
        ),
    ] {
        assert_eq!(files.load().expect_err("refused").to_string(), words);
    }
}
