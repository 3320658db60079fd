//! Bad input gets Docker's text, changes nothing, and kills nobody.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::support::{Bench, Outcome};

/// Arguments of `docker`, and a part of what it must say.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["service", "create", "--no-resolve-image", "--name", "whoami", "whoami:1"],
        "name conflicts with an existing object: service whoami already exists",
    ),
    (
        &["service", "create", "--no-resolve-image", "--publish", "8080:80", "whoami:1"],
        "port '8080' is already in use",
    ),
    (
        &["service", "create", "--no-resolve-image", "--constraint", "node.role=manager", "whoami:1"],
        "constraint",
    ),
    (
        &["service", "create", "--no-resolve-image", "--name", "bad name", "whoami:1"],
        "name must be valid as a DNS name component",
    ),
    (
        &["service", "create", "--no-resolve-image", "--network", "nowhere", "whoami:1"],
        "network nowhere not found",
    ),
    (&["network", "create", "-d", "overlay", "app"], "already exists"),
    (&["network", "create", "-d", "overlay", "--subnet", "10.0.1.0/24", "other"], "overlaps"),
    (&["network", "rm", "app"], "is in use by service"),
    (&["network", "rm", "nowhere"], "network nowhere not found"),
    (&["service", "rm", "nothing"], "service nothing not found"),
    (&["service", "inspect", "nothing"], "no such service: nothing"),
    (&["service", "ps", "nothing"], "no such service: nothing"),
    (&["node", "inspect", "nobody"], "node nobody not found"),
    (&["swarm", "init"], "This node is already part of a swarm."),
    (
        &["swarm", "join", "--token", "SWMTKN-1-x-y", "198.18.0.1:2377"],
        "This node is already part of a swarm.",
    ),
    (
        &["swarm", "leave"],
        "You are attempting to leave the swarm on a node that is participating as a manager.",
    ),
];

pub fn refused(bench: &mut Bench) -> Outcome {
    let before = picture(bench)?;
    let manager = bench.live_manager()?;
    for (args, text) in REFUSED {
        let output = bench.lab.try_docker(&manager, args)?;
        ensure!(!output.success(), "docker {} succeeded", args.join(" "));
        ensure!(
            output.text().contains(text),
            "docker {} said {:?}, not {text:?}",
            args.join(" "),
            output.text()
        );
    }
    let worker = bench.lab.try_docker("w1", &["node", "ls"])?;
    ensure!(
        worker.text().contains("This node is not a swarm manager. Worker nodes can't be used"),
        "{}",
        worker.text()
    );
    raw_requests(bench, &manager)?;
    ensure!(picture(bench)? == before, "something changed");
    Ok(())
}

/// Services, networks and nodes as they are.
fn picture(bench: &Bench) -> anyhow::Result<String> {
    let mut all = String::new();
    for list in [&["service", "ls"][..], &["network", "ls"], &["node", "ls"]] {
        all.push_str(&bench.docker(list)?);
    }
    Ok(all)
}

/// What no CLI sends.
fn raw_requests(bench: &Bench, manager: &str) -> Outcome {
    let json = "Content-Type: application/json\r\n";
    let huge = format!(
        "POST /v1.41/services/create HTTP/1.1\r\nHost: d\r\n{json}Content-Length: 99999999999\r\n\r\n{{"
    );
    let requests = [
        (
            format!(
                "POST /v1.41/services/create HTTP/1.1\r\nHost: d\r\n{json}Content-Length: 5\r\n\r\n{{nope"
            ),
            "400",
        ),
        ("GET /v9.99/info HTTP/1.1\r\nHost: d\r\n\r\n".to_owned(), "400"),
        ("GET /nowhere HTTP/1.1\r\nHost: d\r\n\r\n".to_owned(), "404"),
        ("\u{0}\u{1}rubbish\r\n\r\n".to_owned(), "400"),
        (huge, "500"),
    ];
    let path = bench.lab.socket(manager)?;
    for (text, status) in requests {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(text.as_bytes())?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).with_context(|| format!("no answer to {text:?}"))?;
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head.starts_with(&format!("HTTP/1.1 {status}")), "{text:?} got {head:?}");
    }
    ensure!(bench.lab.pid(manager)?.is_some(), "the daemon is gone");
    Ok(())
}
