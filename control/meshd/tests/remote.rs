//! The daemon's API over TCP: the real program, the real CLI. Needs root.

#[path = "../../api/tests/common/certificates.rs"]
mod certificates;
mod common;

use certificates::Certificates;
use common::Net;

const ADDRESS: &str = "tcp://127.0.0.1";

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn server_options(of: &Certificates) -> Vec<String> {
    let file = |name: &str| of.file(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server-key.pem"));
    words(&format!("--tlsverify --tlscacert {ca} --tlscert {cert} --tlskey {key}"))
}

#[test]
fn a_cluster_is_made_from_afar() {
    let net = Net::new("tls", 1);
    let mut node = net.node(0);
    let own = Certificates::make(&net.dir.path().join("own"), "127.0.0.1");
    let other = Certificates::make(&net.dir.path().join("other"), "127.0.0.1");
    let hosts = words(&format!("-H unix://{} -H {ADDRESS}", node.socket().display()));
    node.start_with(&[server_options(&own), hosts].concat());
    let docker = |client: &Certificates, line: &str| {
        let options = words(&format!("-H {ADDRESS}:2376 {line}"));
        let output = node.run_beside("docker", &[client.client_options(&own), options].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let refused = docker(&other, "swarm init --advertise-addr eth0");
    assert!(!refused.0 && refused.2.contains("tls: "), "{refused:?}");
    let made = docker(&own, "swarm init --advertise-addr eth0");
    assert!(made.0, "{made:?}");
    let listed = docker(&own, "node ls --format {{.Hostname}}");
    assert_eq!((listed.0, listed.1.as_str()), (true, "node0\n"), "{listed:?}");
    assert_eq!(node.nodes(), ["node0 ready manager"], "the socket is there too");
    assert!(node.terminate(), "SIGTERM is a clean end");
    assert!(!node.socket().exists(), "the socket is gone");
}

#[test]
fn what_would_be_open_or_can_not_be_read_is_refused_at_the_start() {
    let net = Net::new("open", 1);
    let node = net.node(0);
    let own = Certificates::make(&net.dir.path().join("own"), "127.0.0.1");
    let (ends_well, open) = node.says(&words(&format!("-H {ADDRESS}")));
    assert!(!ends_well && open.contains("--host tcp://127.0.0.1: only with --tlsverify"), "{open}");
    let options = [server_options(&own), words(&format!("-H {ADDRESS}"))].concat();
    let check = [words("check"), options.clone()].concat();
    assert_eq!(node.says(&check), (true, String::new()));
    let elsewhere = [server_options(&own), words("-H tcp://203.0.113.9")].concat();
    let (ends_well, said) = node.says(&elsewhere);
    assert!(!ends_well && said.contains("meshd: can't listen on tcp://203.0.113.9:2376: "), "{said}");
    let missing = own.file("server-key.pem");
    std::fs::remove_file(&missing).expect("removed");
    for line in [&check, &options] {
        let (ends_well, said) = node.says(line);
        let expected = format!("meshd: --tlsverify: can't read {}: No such file", missing.display());
        assert!(!ends_well && said.starts_with(&expected), "{said}");
    }
}
