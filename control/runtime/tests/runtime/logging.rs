//! Output of real containers on its way to log servers.

use std::io::Read as _;
use std::os::unix::net::UnixDatagram;

use control_model::executor::{Executor, Provisions};
use control_model::log_driver::LogDriver;
use control_model::{OutputQuery, Task};
use control_runtime::OutputError;

use crate::common::{PATIENCE, TestNode, task};

const RUNC: &str = "/usr/sbin/runc";

async fn node() -> TestNode {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[r#"ENTRYPOINT ["/toolbox"]"#]).await;
    node
}

fn logging(arguments: &[&str], name: &str, options: &[(&str, &str)]) -> Task {
    let mut task = task("toolbox:1", arguments);
    let options = options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    task.spec.log_driver = Some(LogDriver { name: name.into(), options });
    task
}

/// What a server gets in one datagram.
fn received(server: &UnixDatagram) -> String {
    let mut datagram = vec![0; 64 << 10];
    let n = server.recv(&mut datagram).expect("something came");
    String::from_utf8(datagram[..n].to_vec()).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_server_gets_each_line_also_of_when_it_was_away() {
    let mut node = node().await;
    let socket = node.dir.path().join("syslog");
    let address = format!("unixgram://{}", socket.display());
    let options = [("syslog-address", address.as_str()), ("tag", "{{.Name}}")];
    let stays = logging(&["echo", "one", "+", "warn", "two", "+", "stay"], "syslog", &options);
    // It runs, and nobody listens yet.
    node.run(&stays).await;
    node.line(&stays, "one").await;
    let server = UnixDatagram::bind(&socket).expect("bound");
    server.set_read_timeout(Some(PATIENCE)).expect("set");
    let name = stays.name();
    let (first, second) = (received(&server), received(&server));
    assert!(first.starts_with("<30>") && first.contains(&format!(" {name}[")), "{first}");
    assert!(first.ends_with("]: one\n") && second.starts_with("<27>"), "{first}{second}");
    assert!(second.ends_with("]: two\n"), "{second}");

    // A daemon after this one goes on behind what was sent: it is known soon, whatever the container does.
    let kept = node.dir.path().join("state/tasks").join(stays.id.to_string()).join("sent.json");
    let waited = std::time::Instant::now();
    while !kept.exists() {
        assert!(waited.elapsed() < PATIENCE, "it is known how much was sent");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    node.reopen(RUNC);
    node.oci.resume_output();
    let next = logging(&["echo", "three"], "syslog", &options);
    assert_eq!(node.output(&next).await.0, 0);
    let third = received(&server);
    assert!(third.ends_with("]: three\n"), "nothing comes twice: {third}");
    node.oci.terminate(stays.id).await.expect("ended");
    node.oci.wait(stays.id).await.expect("ended");
    // Whoever looks here reads them too.
    assert_eq!(node.log(&stays), ["one", "two"]);
    for task in [&stays, &next] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.assert_clean();
}

/// conmon keeps what a process writes at once, and cuts that at 8 KiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_is_one_message_however_it_was_written() {
    let node = node().await;
    let socket = node.dir.path().join("syslog");
    let server = UnixDatagram::bind(&socket).expect("bound");
    server.set_read_timeout(Some(PATIENCE)).expect("set");
    let address = format!("unixgram://{}", socket.display());
    let long = "x".repeat(12_000);
    let words = ["print", "one ", "+", "print", "line\n", "+", "echo", long.as_str(), "+", "print", "rest"];
    let speaks = logging(&words, "syslog", &[("syslog-address", &address)]);
    assert_eq!(node.output(&speaks).await.0, 0);
    for expected in ["one line", long.as_str(), "rest"] {
        let message = received(&server);
        assert!(message.ends_with(&format!("]: {expected}\n")), "{message}");
    }
    node.oci.remove(speaks.id).await.expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn graylog_gets_messages_by_tcp() {
    let node = node().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = format!("tcp://{}", listener.local_addr().expect("bound"));
    let options = [("gelf-address", address.as_str()), ("env", "REGION")];
    let mut speaks = logging(&["echo", "one", "+", "echo", "two"], "gelf", &options);
    speaks.spec.container.env = vec!["REGION=eu".into()];
    let reading = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody comes");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("it ends");
        all
    });
    assert_eq!(node.output(&speaks).await.0, 0);
    // Its removal leaves time for what is on its way.
    node.oci.remove(speaks.id).await.expect("removed");
    let all = reading.join().expect("read");
    let messages: Vec<serde_json::Value> = all
        .split(|byte| *byte == 0)
        .filter(|message| !message.is_empty())
        .map(|message| serde_json::from_slice(message).expect("JSON"))
        .collect();
    let texts: Vec<_> = messages.iter().map(|one| one["short_message"].as_str().expect("text")).collect();
    assert_eq!(texts, ["one", "two"]);
    assert_eq!(messages[0]["_REGION"], "eu");
    assert_eq!(messages[0]["_container_name"], speaks.name());
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_kept_as_far_as_is_said() {
    let node = node().await;
    let silent = logging(&["echo", "one"], "none", &[]);
    node.oci.prepare(&silent, &Provisions::default()).await.expect("prepared");
    node.oci.start(&silent, &node.sandbox).await.expect("started");
    assert_eq!(node.oci.wait(silent.id).await.expect("ended").code, 0);
    let all = OutputQuery {
        stdout: true,
        stderr: true,
        since: None,
        until: None,
        after: None,
        tail: None,
        follow: false,
    };
    let refused = node.oci.output(&silent.id.container_id(), all).expect_err("nothing is kept");
    assert_eq!(refused, OutputError::NotKept);

    // 200 lines of over 100 bytes, and room for 8,000 in two files.
    let text = "x".repeat(60);
    let words = ["echo", text.as_str(), "+"].repeat(200);
    let many = logging(&words[..words.len() - 1], "json-file", &[("max-size", "4k"), ("max-file", "2")]);
    assert_eq!(node.output(&many).await.0, 0);
    let info = node.oci.container_of_task(many.id).expect("known");
    let size = std::fs::metadata(&info.log).expect("there").len();
    assert!((1..=4_200).contains(&size), "{size}");
    for task in [&silent, &many] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.assert_clean();
}
