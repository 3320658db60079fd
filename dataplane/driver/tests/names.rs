//! Names in the sandboxes of a driver, by the real DNS process. Needs root.
//!
//! Called as `names serve <socket>` this program is the DNS process.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use dataplane_dns::{DnsClient, ServerLaunch, ServerOptions, TtlPolicy, run_server};
use dataplane_driver::DriverOptions;
use dataplane_model::SandboxId;
use lab::{Lab, NODE_A, NODE_B, Ns, view};

/// How long clients may keep answers here, seconds: not the default.
const TTL_S: u32 = 9;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, command, socket] = &args[..]
        && command == "serve"
    {
        let ended = run_server(&ServerOptions::new(socket.into()));
        std::process::exit(i32::from(ended.is_err()));
    }
    names_are_served_and_outlive_the_driver();
    sandboxes_that_leave_are_let_go();
    a_service_may_be_the_resolver_of_another();
    println!("names: 3 tests passed");
}

fn with_names(options: &mut DriverOptions) {
    let program = std::env::current_exe().unwrap();
    let args = vec!["serve".into(), options.dns_socket().into()];
    options.dns_ttl = TtlPolicy::new(TTL_S);
    options.dns = Some(ServerLaunch { program, args, log: Some(options.run_dir.join("dns.log")) });
}

fn names_are_served_and_outlive_the_driver() {
    let mut lab = Lab::new(with_names);
    // Ready means that names resolve: nothing is waited for after this.
    lab.converge(1);
    let five = lab.a.sandbox(5);

    assert_eq!(resolve(&five, "web").unwrap(), [view::VIP]);
    assert_eq!(resolve(&five, "tasks.web").unwrap(), [view::app(5), view::app(6)]);

    lab.a.kill();
    assert_eq!(resolve(&five, "web").unwrap(), [view::VIP]);

    lab.a.start();
    lab.a.converge(view::without_task(2, NODE_A, 6));
    lab::wait_until(
        "the task is gone from the names",
        || resolve(&five, "tasks.web").unwrap() == [view::app(5)],
        String::new,
    );
    lab.b.converge(view::without_task(2, NODE_B, 6));
    let process = server_pid(&lab);
    lab.a.tear_down();
    let has_ended = || !fs::exists(format!("/proc/{process}")).unwrap() || is_zombie(&process);
    lab::wait_until("the DNS process ends", has_ended, String::new);
}

fn sandboxes_that_leave_are_let_go() {
    let lab = Lab::new(with_names);
    lab.converge(1);
    let namespace = lab.a.options.netns_dir().join("task5");
    assert_eq!(served(&lab), BTreeSet::from([SandboxId("task5".into())]));

    lab.a.converge(view::without_task(2, NODE_A, 5));

    assert!(!namespace.exists());
    assert_eq!(served(&lab), BTreeSet::new());
}

/// `--dns` with an address of the overlay, and with a virtual one: asked from the sandbox, on to the other node.
fn a_service_may_be_the_resolver_of_another() {
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
    let lab = Lab::new(with_names);
    lab.converge(1);
    let (five, six) = (lab.a.sandbox(5), lab.b.sandbox(6));
    // Beside the service DNS of their own sandboxes.
    for sandbox in [&five, &six] {
        let socket = sandbox.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
        std::thread::spawn(move || answer_all(&socket, OUTSIDE));
    }
    for (revision, resolver) in [(2, view::app(6)), (3, view::VIP)] {
        let mut wanted = view::of_node(revision, NODE_A);
        let own = wanted.sandboxes.get_mut(&SandboxId("task5".into())).unwrap();
        own.dns_servers = vec![resolver.into()];
        lab.a.converge(wanted);
        lab::wait_until(
            "the resolver is asked",
            || resolve(&five, &format!("asked-{revision}.example")).is_ok_and(|found| found == [OUTSIDE]),
            || format!("{resolver} does not answer"),
        );
        assert_eq!(resolve(&five, "web").unwrap(), [view::VIP]);
    }
}

/// A resolver that knows one address for all names.
fn answer_all(socket: &UdpSocket, address: Ipv4Addr) {
    let mut query = [0; 512];
    while let Ok((_, client)) = socket.recv_from(&mut query) {
        let n_name = query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
        let mut answer = query[..12 + n_name + 4].to_vec();
        answer[2] |= 0x80;
        answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(TTL_S.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
        socket.send_to(&answer, client).unwrap();
    }
}

/// What the DNS process of node `a` says that it serves.
fn served(lab: &Lab) -> BTreeSet<SandboxId> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = DnsClient::start(lab.a.options.dns_socket(), None);
        let mut status = client.status();
        let status = status.wait_for(|status| status.connected).await.unwrap();
        status.served.clone()
    })
}

fn server_pid(lab: &Lab) -> String {
    let lock = lab.a.options.run_dir.join("dns.sock.lock");
    fs::read_to_string(lock).unwrap().trim().to_owned()
}

/// Ended, and not yet waited for by this process, which started it.
fn is_zombie(process: &str) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// The addresses of `name`, sorted, as a program in `sandbox` gets them (RFC 1035 section 4).
fn resolve(sandbox: &Ns, name: &str) -> io::Result<Vec<Ipv4Addr>> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let n_question = query.len();
    let answer = sandbox.run(move || {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&query, "127.0.0.11:53")?;
        let mut answer = vec![0; 512];
        let n_bytes = socket.recv(&mut answer)?;
        answer.truncate(n_bytes);
        io::Result::Ok(answer)
    })?;
    // Records of a compressed name (2), type, class, TTL, length (10) and an address (4).
    let records = answer[n_question..].chunks_exact(16).take(usize::from(answer[7]));
    let address = |record: &[u8]| {
        assert_eq!(record[6..10], TTL_S.to_be_bytes(), "the node's own setting");
        Ipv4Addr::new(record[12], record[13], record[14], record[15])
    };
    let mut addresses: Vec<Ipv4Addr> = records.map(address).collect();
    addresses.sort();
    Ok(addresses)
}
