//! `--dns`, `--dns-search` and `--dns-option`: what the container's file says, and who is asked.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context as _, ensure};

use crate::support::{Bench, Outcome};

/// What the resolver outside says to everyone.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

pub fn own_resolver(bench: &mut Bench) -> Outcome {
    let address = bench.lab.client_address();
    let socket = bench.lab.inside("client", || UdpSocket::bind((address, 53)))??;
    // Ends with the process.
    std::thread::spawn(move || answer_all(&socket));
    let server = address.to_string();
    let options = [
        "--dns",
        &server,
        "--dns-search",
        "a.example",
        "--dns-option",
        "ndots:2",
        "--dns-option",
        "timeout:3",
    ];
    bench.create_whoami("resolver", 1, &options)?;
    let task = bench.running("resolver")?.into_iter().next().context("no task runs")?;

    let container = format!("{}.{}", task.name, task.id);
    let pid = bench.lab.docker(&task.node, &["inspect", "--format", "{{.State.Pid}}", &container])?;
    let file = std::fs::read_to_string(format!("/proc/{}/root/etc/resolv.conf", pid.trim()))?;
    ensure!(
        file == "nameserver 127.0.0.11\nsearch a.example\noptions ndots:2 timeout:3\n",
        "the container's resolv.conf is {file:?}"
    );
    let found = bench.in_task(&task, &["resolve", "www.outside.example"])?;
    ensure!(found.trim() == OUTSIDE.to_string(), "its resolver is {server}, and it gets {found:?}");
    let own = bench.in_task(&task, &["resolve", "whoami"])?;
    ensure!(own.lines().count() == 1 && own.trim() != OUTSIDE.to_string(), "whoami resolves to {own:?}");
    let short = bench.in_task(&task, &["resolve", "outside"]);
    ensure!(short.is_err(), "with ndots:2 a short name is not asked for outside: {short:?}");
    bench.docker(&["service", "rm", "resolver"])?;
    Ok(())
}

fn answer_all(socket: &UdpSocket) {
    let mut query = [0; 512];
    while let Ok((n_query, client)) = socket.recv_from(&mut query) {
        let Some(n_name) = query[12..n_query].iter().position(|byte| *byte == 0) else { continue };
        let mut answer = query[..12 + n_name + 5].to_vec();
        answer[2] |= 0x80;
        answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
        // The question's name, an A record for a minute.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(OUTSIDE.octets());
        // Nobody waits for what can't be sent.
        let _ = socket.send_to(&answer, client);
    }
}
