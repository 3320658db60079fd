//! The client against a daemon that says one thing.

use std::time::Duration;

use bytes::Bytes;
use control_client::{Client, ClientError};
use dataplane_model::inspect::DropsReport;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// Takes one connection, answers with these bytes; gives back what it was sent. The request's body must end in `end`.
fn daemon(answer: &'static str, end: &'static str) -> (TempDir, Client, JoinHandle<String>) {
    let directory = tempfile::tempdir().expect("a socket in an own directory");
    let socket = directory.path().join("docker.sock");
    let listener = UnixListener::bind(&socket).expect("a socket in an own directory");
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a socket in an own directory");
        let mut request = Vec::new();
        while !request.ends_with(end.as_bytes()) {
            assert_ne!(
                stream.read_buf(&mut request).await.expect("a socket in an own directory"),
                0,
                "the client ended too early"
            );
        }
        stream.write_all(answer.as_bytes()).await.expect("a socket in an own directory");
        String::from_utf8(request).expect("a socket in an own directory")
    });
    (directory, Client::new(socket).with_timeout(Duration::from_secs(10)), task)
}

const END_OF_HEADERS: &str = "\r\n\r\n";

#[tokio::test]
async fn a_value_is_read_from_a_versioned_path() {
    let (_directory, client, task) =
        daemon("HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"ID\":\"abc\"}\r\n", END_OF_HEADERS);
    assert_eq!(client.get("/info").await.unwrap(), json!({"ID": "abc"}));
    assert!(task.await.unwrap().starts_with("GET /v1.41/info HTTP/1.1\r\nhost: docker\r\n"));
}

#[tokio::test]
async fn a_body_goes_as_json_and_no_content_is_null() {
    let (_directory, client, task) = daemon("HTTP/1.1 204 No Content\r\n\r\n", "}");
    assert_eq!(client.post("/swarm/leave?force=1", Some(&json!({"A": 1}))).await.unwrap(), json!(null));
    let request = task.await.unwrap();
    assert!(request.starts_with("POST /v1.41/swarm/leave?force=1 "), "{request}");
    assert!(request.contains("content-type: application/json\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n{\"A\":1}"), "{request}");
}

#[tokio::test]
async fn bytes_go_as_they_are() {
    let (_directory, client, task) = daemon("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "tarball");
    let answer =
        client.post_bytes("/images/load", "application/x-tar", Bytes::from_static(b"tarball")).await.unwrap();
    assert_eq!(answer, "ok");
    assert!(task.await.unwrap().contains("content-type: application/x-tar\r\n"));
}

#[tokio::test]
async fn a_refusal_has_the_daemons_words() {
    let (_directory, client, _task) = daemon(
        "HTTP/1.1 409 Conflict\r\ncontent-length: 36\r\n\r\n{\"message\":\"name conflicts with an\"}",
        END_OF_HEADERS,
    );
    let error = client.delete("/services/x").await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.status()), ("name conflicts with an", Some(409)));
    assert!(!error.is_unreachable());
}

#[tokio::test]
async fn a_refusal_that_is_no_json_is_shown_as_it_is() {
    let (_directory, client, _task) =
        daemon("HTTP/1.1 404 Not Found\r\ncontent-length: 15\r\n\r\npage not found\n", END_OF_HEADERS);
    assert_eq!(client.get("/x").await.unwrap_err().to_string(), "page not found");
}

#[tokio::test]
async fn inspection_is_not_versioned_and_typed() {
    let (_directory, client, task) =
        daemon("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"programs\":[]}", END_OF_HEADERS);
    assert_eq!(client.drops().await.unwrap(), DropsReport::default());
    assert!(task.await.unwrap().starts_with("GET /mesh/drops "));
}

#[tokio::test]
async fn a_daemon_that_is_not_there_or_silent_is_unreachable() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let client = Client::new(&socket).with_timeout(Duration::from_millis(50));
    let error = client.get("/info").await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("Is it running?"), "{error}");

    let _listener = UnixListener::bind(&socket).unwrap();
    let error = client.get("/info").await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }) && error.is_unreachable(), "{error}");
}
