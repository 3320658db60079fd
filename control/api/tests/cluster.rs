//! What the real CLI shows of a cluster: version, info, nodes, the swarm's life.

mod common;

use std::sync::atomic::Ordering;

use common::Daemon;
use common::cli::{mask, programs};
use common::node::NO_LEADER;
use control_api::Node as _;
use control_api::node::Membership;
use control_ca::{RootCa, key_digest};
use control_model::{Change, Object};
use control_store::{ApplyError, ReplicatedStore as _};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_and_info_are_truthful() {
    let daemon = Daemon::manager().await;
    let version = daemon.prints("version --format '{{.Server.Platform.Name}} {{.Server.Version}} {{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Server.Os}}'").await;
    assert_eq!(version, "meshd 0.1.0 1.50 1.24 linux");

    let info = daemon.docker("info").await;
    assert_eq!(info.code, 0, "{info:?}");
    let shown = mask(&info.stdout);
    let start = shown.find(" Swarm:").expect("a swarm section");
    let end = shown.find(" Init Binary:").expect("what follows");
    assert_eq!(
        &shown[start..end],
        " Swarm: active
  NodeID: <id>
  Is Manager: true
  ClusterID: <id>
  Managers: 1
  Nodes: 3
  Default Address Pool: 10.0.0.0/8
  SubnetSize: 24
  Data Path Port: 4789
  Orchestration:
   Task History Retention Limit: 5
  Raft:
   Snapshot Interval: 10000
   Number of Old Snapshots to Retain: 0
   Heartbeat Tick: 1
   Election Tick: 10
  Dispatcher:
   Heartbeat Period: 5 seconds
  CA Configuration:
   Expiry Duration: 3 months
   Force Rotate: 0
  Autolock Managers: false
  Root Rotation In Progress: false
  Node Address: 198.18.0.11
  Manager Addresses:
   198.18.0.11:2377
 Runtimes: runc
 Default Runtime: runc
"
    );
    for line in [
        " Containers: 0",
        "  Running: 0",
        "  Paused: 0",
        "  Stopped: 0",
        " Images: 1",
        " Server Version: 0.1.0",
        " Storage Driver: overlayfs",
        " Logging Driver: json-file",
        " Cgroup Driver: cgroupfs",
        "  Volume: local",
        "  Network: overlay",
        " Name: m1",
        " Docker Root Dir: /var/lib/meshd",
        "  198.18.0.11:5000",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in\n{shown}");
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
    assert!(shown.contains(&format!(" Kernel Version: {}", kernel.trim())), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_listed_inspected_and_changed() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let output = daemon.docker_by(program, "node ls", b"").await;
        assert_eq!(
            output.stdout,
            "ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION
10dgnsxljkws1v3zd3tzz4b9t *   m1         Ready     Active         Leader           0.1.0
20qxblv735tk3q7yq7nzy8mjm     w1         Ready     Active                          0.1.0
314dzessmqqc5lby3bhzxcxtf     w2         Ready     Active                          0.1.0
",
            "{program}"
        );
    }
    let pretty = daemon.docker("node inspect --pretty m1").await.stdout;
    let (before, rest) = pretty.split_once("Joined at:").expect("a time");
    let after = rest.split_once('\n').expect("a line").1;
    assert_eq!(before, "ID:\t\t\t10dgnsxljkws1v3zd3tzz4b9t\nHostname:              \tm1\n");
    assert!(
        after.starts_with(
            "Status:
 State:\t\t\tReady
 Availability:         \tActive
 Address:\t\t198.18.0.11
Manager Status:
 Address:\t\t198.18.0.11:2377
 Raft Status:\t\tReachable
 Leader:\t\tYes
Platform:
 Operating System:\tlinux
 Architecture:\t\tx86_64
Resources:
 CPUs:\t\t\t2
 Memory:\t\t2GiB
Plugins:
 Network:\t\toverlay
 Volume:\t\tlocal
Engine Version:\t\t0.1.0
TLS Info:
 TrustRoot:
-----BEGIN CERTIFICATE-----"
        ),
        "{after}"
    );
    // `CN=swarm-ca` in DER.
    assert!(after.contains(" Issuer Subject:\tMBMxETAPBgNVBAMMCHN3YXJtLWNh\n"), "{after}");

    assert_eq!(daemon.prints("node update --availability drain --label-add zone=a w1").await, "w1");
    let shown =
        daemon.prints("node inspect --format '{{.Spec.Availability}} {{json .Spec.Labels}}' w1").await;
    assert_eq!(shown, r#"drain {"zone":"a"}"#);
    let filtered = daemon.prints("node ls --filter node.label=zone=a --format {{.Hostname}}").await;
    assert_eq!(filtered, "w1");
    assert_eq!(daemon.prints("node update --availability pause --label-rm zone w1").await, "w1");
    let shown =
        daemon.prints("node inspect --format '{{.Spec.Availability}} {{json .Spec.Labels}}' w1").await;
    assert_eq!(shown, "pause {}");
    assert_eq!(daemon.prints("node ls --filter role=manager --format {{.Hostname}}").await, "m1");
    assert_eq!(daemon.prints("node promote w2").await, "Node w2 promoted to a manager in the swarm.");
    assert_eq!(daemon.prints("node promote w2").await, "Node <id> is already a manager.");
    assert_eq!(daemon.prints("node demote w2").await, "Manager w2 demoted in the swarm.");
    assert_eq!(daemon.prints("node rm --force w2").await, "w2");
    assert_eq!(daemon.prints("node ls --format {{.Hostname}}").await, "m1\nw1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_forms_a_cluster_and_leaves_it() {
    let daemon = Daemon::alone().await;
    assert_eq!(
        daemon.prints("swarm init --advertise-addr 198.18.0.11 --default-addr-pool 10.20.0.0/16 --default-addr-pool-mask-length 26 --data-path-port 5789").await,
        format!(
            "Swarm initialized: current node (<id>) is now a manager.

To add a worker to this swarm, run the following command:

    docker swarm join --token SWMTKN-1-{}-{} 198.18.0.11:2377

To add a manager to this swarm, run 'docker swarm join-token manager' and follow the instructions.",
            "a".repeat(50),
            "w".repeat(25)
        )
    );
    let asked = daemon.node.inits.lock().expect("no panic")[0].clone();
    assert_eq!((asked.advertise_addr.as_str(), asked.listen_addr.as_str()), ("198.18.0.11", "0.0.0.0:2377"));
    assert_eq!(asked.default_address_pool, ["10.20.0.0/16".parse().expect("a pool")]);
    assert_eq!((asked.subnet_size, asked.data_path_port), (26, 5789));
    assert_eq!(asked.cluster, control_model::spec::ClusterSpec::default());

    assert_eq!(
        daemon.refuses("swarm init").await,
        "Error response from daemon: This node is already part of a swarm. Use \"docker swarm leave\" to leave this \
         swarm and join another one."
    );
    assert_eq!(
        daemon.refuses("swarm leave").await,
        "Error response from daemon: You are attempting to leave the swarm on a node that is participating as a \
         manager. Removing the last manager erases all current state of the swarm. Use `--force` to ignore this \
         message."
    );
    assert_eq!(daemon.prints("swarm leave --force").await, "Node left the swarm.");
    assert_eq!(daemon.node.local().membership, Membership::Inactive);
    assert_eq!(
        daemon.refuses("swarm leave").await,
        "Error response from daemon: This node is not part of a swarm"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_new_cluster_has_its_addresses_from_the_request_and_nothing_else() {
    let daemon = Daemon::manager().await;
    for (flags, field) in [
        ("--autolock", "AutoLockManagers"),
        ("--default-addr-pool 10.20.0.0/16", "DefaultAddrPool"),
        ("--default-addr-pool-mask-length 26", "SubnetSize"),
        ("--data-path-port 5789", "DataPathPort"),
        ("--availability drain", "Availability"),
        ("--task-history-limit 3", "Spec"),
        ("--cert-expiry 48h", "Spec"),
    ] {
        assert_eq!(
            daemon.refuses(&format!("swarm init --force-new-cluster {flags}")).await,
            format!(
                "Error response from daemon: init with ForceNewCluster and {field} is not supported by this daemon"
            )
        );
    }
    assert!(daemon.node.inits.lock().expect("no panic").is_empty(), "a refused request did something");
    let said = daemon
        .prints("swarm init --force-new-cluster --advertise-addr 198.18.0.12 --listen-addr 198.18.0.12:2377 --data-path-addr 198.18.0.13")
        .await;
    assert!(said.starts_with("Swarm initialized: current node (<id>) is now a manager."), "{said}");
    let asked = daemon.node.inits.lock().expect("no panic")[0].clone();
    assert!(asked.force_new_cluster);
    assert_eq!(
        (asked.advertise_addr.as_str(), asked.listen_addr.as_str(), asked.data_path_addr.as_str()),
        ("198.18.0.12", "198.18.0.12:2377", "198.18.0.13")
    );
    // Where there is no cluster yet, it is a plain new one, with all that is wanted.
    let alone = Daemon::alone().await;
    alone.prints("swarm init --force-new-cluster --data-path-port 5789").await;
    assert_eq!(alone.node.inits.lock().expect("no panic")[0].data_path_port, 5789);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_by_token() {
    let daemon = Daemon::alone().await;
    assert_eq!(
        daemon.refuses("swarm join --token nonsense 198.18.0.11:2377").await,
        "Error response from daemon: invalid join token"
    );
    assert_eq!(
        daemon
            .prints(
                "swarm join --token SWMTKN-1-a-b --availability drain 198.18.0.11:2377 --advertise-addr 10.0.0.4:2377 \
                 --listen-addr 10.0.0.5:2377 --data-path-addr 10.0.0.6"
            )
            .await,
        "This node joined a swarm as a worker."
    );
    let asked = daemon.node.joins.lock().expect("no panic")[0].clone();
    assert_eq!(asked.remote_addrs, ["198.18.0.11:2377"]);
    assert_eq!(asked.availability, control_model::spec::Availability::Drain);
    assert_eq!(
        [asked.advertise_addr.as_str(), &asked.listen_addr, &asked.data_path_addr],
        ["10.0.0.4:2377", "10.0.0.5:2377", "10.0.0.6"]
    );
    assert_eq!(daemon.prints("swarm leave").await, "Node left the swarm.");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_settings_are_shown_and_changed() {
    let daemon = Daemon::manager().await;
    let shown = daemon.prints("swarm join-token worker").await;
    assert!(shown.starts_with("To add a worker to this swarm, run the following command:\n\n    docker swarm join --token SWMTKN-1-"), "{shown}");
    let old = daemon.docker("swarm join-token -q manager").await.stdout;
    let rotated = daemon.docker("swarm join-token --rotate -q manager").await.stdout;
    assert_ne!(rotated, old);
    assert_eq!(daemon.docker("swarm join-token -q manager").await.stdout, rotated);
    let token =
        rotated.trim_end().strip_prefix("SWMTKN-1-").expect("a token").split_once('-').expect("two parts");
    assert_eq!((token.0.len(), token.1.len()), (50, 25));

    assert_eq!(
        daemon.prints("swarm update --task-history-limit 4 --cert-expiry 48h").await,
        "Swarm updated."
    );
    let info = daemon.docker("info").await.stdout;
    assert!(
        info.contains("Task History Retention Limit: 4") && info.contains("Expiry Duration: 2 days"),
        "{info}"
    );
    assert_eq!(
        daemon.refuses("swarm update --cert-expiry 59m").await,
        "Error response from daemon: rpc error: code = InvalidArgument desc = minimum certificate expiry time is: 1h0m0s"
    );
    assert_eq!(
        daemon.refuses("swarm update --dispatcher-heartbeat 100ms").await,
        "Error response from daemon: rpc error: code = InvalidArgument desc = minimum heartbeat period is: 1s"
    );
    assert_eq!(
        daemon.prints("swarm update --dispatcher-heartbeat 2s --snapshot-interval 300").await,
        "Swarm updated."
    );
    let info = daemon.docker("info").await.stdout;
    assert!(
        info.contains("Heartbeat Period: 2 seconds") && info.contains("Snapshot Interval: 300"),
        "{info}"
    );
    assert_eq!(daemon.refuses("swarm unlock-key").await, "no unlock key is set");
    assert_eq!(
        daemon.refuses("swarm unlock-key --rotate").await,
        "cannot rotate because autolock is not turned on"
    );
}

/// What the CLI says of a key, around it.
fn instructions(key: &str) -> String {
    format!(
        "To unlock a swarm manager after it restarts, run the `docker swarm unlock`\ncommand and provide the following \
         key:\n\n    {key}\n\nRemember to store this key in a password manager, since without it you\nwill not be able \
         to restart the manager."
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn autolock_is_turned_on_rotated_and_turned_off() {
    let daemon = Daemon::manager().await;
    let key = async || daemon.docker("swarm unlock-key -q").await.stdout.trim_end().to_owned();
    let shown = daemon.docker("swarm update --autolock=true").await.stdout;
    let first = key().await;
    assert_eq!((first.len(), first.starts_with("SWMKEY-1-")), (9 + 43, true), "{first}");
    assert_eq!(shown.trim_end(), format!("Swarm updated.\n{}", instructions(&first)));
    assert_eq!(daemon.docker("swarm unlock-key").await.stdout.trim_end(), instructions(&first));
    assert!(daemon.docker("info").await.stdout.contains("Autolock Managers: true"));
    assert_eq!(daemon.prints("swarm update --task-history-limit 4").await, "Swarm updated.");
    assert_eq!(key().await, first, "other updates keep the key");

    let shown = daemon.docker("swarm unlock-key --rotate").await.stdout;
    let second = key().await;
    assert_ne!(second, first);
    assert_eq!(
        shown.trim_end(),
        format!("Successfully rotated manager unlock key.\n{}", instructions(&second))
    );
    assert_eq!(daemon.prints("swarm update --autolock=false").await, "Swarm updated.");
    assert_eq!(daemon.refuses("swarm unlock-key").await, "no unlock key is set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_manager_says_so_until_it_has_the_key() {
    let daemon = Daemon::manager().await;
    daemon.docker("swarm update --autolock=true").await;
    let key = daemon.docker("swarm unlock-key -q").await.stdout;
    assert_eq!(
        daemon.docker_with_input("swarm unlock", key.as_bytes()).await.stderr,
        "Error: swarm is not locked\n"
    );
    assert!(daemon.node.restart());

    let locked = "Error response from daemon: Swarm is encrypted and needs to be unlocked before it can be used. Please \
                  use \"docker swarm unlock\" to unlock it.";
    let backup = daemon.request("POST", "/mesh/backup", b"{}").await;
    assert!(backup.0 == 503 && backup.1.contains("needs to be unlocked"), "{backup:?}");
    for line in [
        "node ls",
        "service ls",
        "service create --detach whoami:v1",
        "network create -d overlay n",
        "swarm update --autolock=false",
        "swarm unlock-key",
        "swarm join-token worker",
        "stack services s",
    ] {
        let refused = daemon.refuses(line).await;
        assert!(refused.ends_with(locked), "{line}: {refused}");
    }
    assert_eq!(
        daemon.refuses("swarm leave").await,
        "Error response from daemon: Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore \
         this message."
    );
    assert!(daemon.refuses("swarm init").await.contains("This node is already part of a swarm."));
    let info = daemon.docker("info").await.stdout;
    assert!(info.contains(" Swarm: locked\n") && !info.contains("NodeID"), "{info}");
    assert_eq!(daemon.header("HEAD", "/_ping", "Swarm").await, "locked");

    let unlock = async |key: &str| daemon.docker_with_input("swarm unlock", key.as_bytes()).await;
    let wrong = format!("SWMKEY-1-{}", "A".repeat(43));
    for (given, refusal) in
        [("k", "invalid key string"), (&*wrong, "swarm could not be unlocked: invalid key provided")]
    {
        let refused = unlock(given).await;
        assert_eq!((refused.code, refused.stderr), (1, format!("Error response from daemon: {refusal}\n")));
    }
    let unlocked = unlock(&key).await;
    assert_eq!((unlocked.code, unlocked.stderr.as_str()), (0, ""));
    assert!(daemon.prints("node ls").await.contains("m1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_say_where_the_node_stands() {
    for (daemon, expected) in [
        (Daemon::manager().await, "active/manager"),
        (Daemon::worker().await, "active/worker"),
        (Daemon::alone().await, "inactive"),
    ] {
        let shown = daemon.docker("version").await.stdout;
        assert!(shown.ends_with("Experimental:     false\n"), "{shown}");
        let format = "version --format {{.Server.Version}}";
        assert_eq!(daemon.prints(format).await, "0.1.0");
        assert_eq!(daemon.header("HEAD", "/_ping", "Swarm").await, expected);
        assert_eq!(daemon.header("GET", "/v1.24/_ping", "Api-Version").await, "1.50");
        assert_eq!(daemon.request("GET", "/_ping", b"").await, (200, "OK".into()));
        assert_eq!(daemon.request("HEAD", "/_ping", b"").await, (200, String::new()));
    }
}

/// A manager whose authority can sign, and whose nodes renew.
async fn with_authority() -> (Daemon, tokio::task::JoinHandle<()>) {
    let daemon = Daemon::manager().await;
    let root = RootCa::generate(control_manager::clock::now()).expect("made");
    let sign = || {
        let mut signing = (**daemon.store.state().cluster().expect("made")).clone();
        let expected = signing.meta.version;
        root.cert_pem().clone_into(&mut signing.ca.root_cert);
        signing.ca.root_key = root.key_pem();
        signing.ca.issuer = key_digest(root.cert_pem());
        daemon.store.commit(vec![Change::Update { object: Object::Cluster(Box::new(signing)), expected }])
    };
    // The leader's loops write the cluster too, perhaps in between.
    while let Err(error) = sign() {
        assert!(matches!(error, ApplyError::Conflict(_)), "{error}");
    }
    let renewing = tokio::spawn(common::world::renew(daemon.store.clone()));
    (daemon, renewing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_printed_and_rotated() {
    let (daemon, renewing) = with_authority().await;
    let tls = "node ls --format {{.Hostname}}={{.TLSStatus}}";
    daemon
        .until(|state| {
            state
                .nodes()
                .iter()
                .all(|n| n.description.tls.map(|t| t.issuer) == state.cluster().and_then(|c| c.ca.issuer))
        })
        .await;
    let first = daemon.docker("swarm ca").await.stdout;
    assert!(first.starts_with("-----BEGIN CERTIFICATE-----\n"), "{first}");
    assert_eq!(daemon.prints(tls).await, "m1=Ready\nw1=Ready\nw2=Ready");
    let token = daemon.docker("swarm join-token -q worker").await.stdout;

    // The CLI follows the nodes to the end.
    let rotated = daemon.docker("swarm ca --rotate").await;
    assert_eq!((rotated.code, rotated.stderr.as_str()), (0, ""));
    let second = daemon.docker("swarm ca").await.stdout;
    assert!(second != first && rotated.stdout.trim_end().ends_with(second.trim_end()), "{}", rotated.stdout);
    assert_ne!(daemon.docker("swarm join-token -q worker").await.stdout, token);
    assert_eq!(daemon.prints(tls).await, "m1=Ready\nw1=Ready\nw2=Ready");
    assert_eq!(daemon.prints("swarm update --task-history-limit 3").await, "Swarm updated.");
    assert_eq!(daemon.docker("swarm ca").await.stdout, second, "other updates rotate nothing");

    renewing.abort();
    assert!(renewing.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(daemon.docker("swarm ca --rotate --detach --cert-expiry 48h").await.code, 0);
    assert_eq!(daemon.prints(tls).await, "m1=Needs Rotation\nw1=Needs Rotation\nw2=Needs Rotation");
    let info = daemon.docker("info").await.stdout;
    assert!(
        info.contains("Root Rotation In Progress: true") && info.contains("Expiry Duration: 2 days"),
        "{info}"
    );
    assert_eq!(
        daemon.docker("swarm ca").await.stdout,
        second,
        "the old root is trusted until all have followed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_of_ones_own_is_taken_or_refused_in_dockers_words() {
    let (daemon, renewing) = with_authority().await;
    let own = RootCa::generate(control_manager::clock::now()).expect("made");
    let file = |name: &str, text: &str| {
        let path = daemon.path(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (cert, key) = (file("ca.pem", own.cert_pem()), file("ca-key.pem", &own.key_pem()));
    let rotate = async |flags: &str| daemon.docker(&format!("swarm ca --rotate {flags}")).await;
    let refusals = [
        (format!("--ca-cert {cert}"), "the --ca-cert flag requires that a --ca-key flag"),
        (format!("--ca-cert {key} --ca-key {key}"), "could not parse the desired CA certificate"),
        (format!("--ca-cert {cert} --ca-key {cert}"), "the desired CA key can't be used"),
        (
            format!("--ca-cert {cert} --external-ca protocol=cfssl,url=https://ca.example.org"),
            "Spec.CAConfig.ExternalCAs is not supported",
        ),
    ];
    for (flags, refusal) in refusals {
        let refused = rotate(&flags).await;
        assert!(refused.code != 0 && refused.stderr.contains(refusal), "{flags}: {refused:?}");
    }
    let before = daemon.docker("swarm ca").await.stdout;
    assert_ne!(before.trim(), own.cert_pem().trim(), "a refused root changes nothing");
    let taken = rotate(&format!("--ca-cert {cert} --ca-key {key}")).await;
    assert_eq!((taken.code, taken.stderr.as_str()), (0, ""));
    assert_eq!(daemon.docker("swarm ca").await.stdout.trim(), own.cert_pem().trim());
    let shown = daemon.request("GET", "/swarm", b"").await.1;
    assert!(!shown.contains("PRIVATE KEY"), "the key is shown: {shown}");
    renewing.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_reads_are_answered_and_say_that_they_are_old() {
    let daemon = Daemon::manager().await;
    let create = "service create --no-resolve-image --quiet --name web whoami:v1";
    assert_eq!(daemon.docker(create).await.code, 0);
    let paths = ["/nodes", "/services", "/tasks", "/networks", "/swarm", "/v1.41/services/web"];
    for path in paths {
        assert_eq!(daemon.header("GET", path, "Mesh-Stale").await, "", "{path}");
    }
    daemon.node.leaderless.store(true, Ordering::Relaxed);
    for path in paths {
        assert_eq!(daemon.header("GET", path, "Mesh-Stale").await, "true", "{path}");
    }
    assert_eq!(daemon.prints("node ls --format {{.Hostname}}").await, "m1\nw1\nw2");
    assert_eq!(daemon.prints("service ls --format {{.Name}}").await, "web");
    for write in
        ["service scale --detach web=3", "node update --availability drain w1", "network create -d overlay n"]
    {
        let refused = daemon.docker(write).await;
        assert_ne!(refused.code, 0, "{write}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains(&format!("rpc error: code = Unknown desc = {NO_LEADER}")), "{write}: {said}");
    }
    assert_eq!(
        daemon.header("GET", "/info", "Mesh-Stale").await,
        "",
        "what a node knows of itself is never old"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_are_taken_of_managers_and_given_to_nodes_outside() {
    let daemon = Daemon::manager().await;
    let words = br#"{"Passphrase": "correct horse battery"}"#;
    assert_eq!(daemon.request("POST", "/mesh/backup", words).await, (200, "correct horse battery".into()));
    assert_eq!(
        daemon.request("POST", "/mesh/backup", br#"{"Key": "AQID"}"#).await,
        (200, "\u{1}\u{2}\u{3}".into())
    );
    for (given, message) in [
        (r#"{"Passphrase": "short"}"#, "too short"),
        (r#"{"Key": "?"}"#, "the key is not in base 64"),
        (r#"{"Key": "AQID", "Passphrase": "x"}"#, "a backup is sealed with a passphrase, or with a key"),
        ("{}", "a backup is sealed with a passphrase, or with a key"),
    ] {
        assert_eq!(daemon.error("POST", "/mesh/backup", given).await, (400, message.into()), "{given}");
    }
    // What may be old is taken only if that is asked for.
    daemon.node.leaderless.store(true, Ordering::Relaxed);
    let (status, message) = daemon.error("POST", "/mesh/backup", r#"{"Key": "AQID"}"#).await;
    assert!(status == 503 && message.contains("--stale"), "{status} {message}");
    assert_eq!(daemon.request("POST", "/mesh/backup?stale=1", words).await.0, 200);
    let (status, message) = daemon.error("POST", "/mesh/restore", "{}\n").await;
    assert!(status == 503 && message.contains("already part of a swarm"), "{status} {message}");

    let worker = Daemon::worker().await;
    assert_eq!(worker.error("POST", "/mesh/backup", r#"{"Key": "AQID"}"#).await.0, 503);
    let alone = Daemon::alone().await;
    for (body, status) in [
        ("no line", 400),
        ("no json\n", 400),
        ("{\"Key\": \"AQID\"}\nabc", 400),
        ("{\"Key\": \"YWJj\", \"AdvertiseAddr\": \"nowhere\"}\nabc", 400),
        ("{\"Key\": \"YWJj\"}\nabc", 200),
    ] {
        assert_eq!(alone.request("POST", "/mesh/restore", body.as_bytes()).await.0, status, "{body}");
    }
    assert_eq!(alone.node.inits.lock().expect("not poisoned").len(), 1);
}
