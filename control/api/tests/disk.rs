//! `docker system df` and the prunes through the real CLI.

mod common;

use common::Daemon;
use common::cli::programs;
use common::engine::container;
use control_store::ReplicatedStore as _;

fn squeezed(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// A manager with a task's container, an unused image without a name, volumes and networks.
async fn world() -> Daemon {
    let daemon = Daemon::manager().await;
    for line in [
        "network create -d overlay app",
        "network create -d overlay --label keep=1 idle",
        "service create -d --no-resolve-image --name web --network app --constraint node.hostname==m1 whoami:v1",
        "volume create used",
        "volume create idle",
    ] {
        daemon.prints(line).await;
    }
    daemon.running("web", 1).await;
    let task = daemon.store.state().tasks().iter().next().expect("made").clone();
    let image = daemon.engine.images.lock().expect("no panic")[0].clone();
    let mut own = container(&task);
    own.image_id.clone_from(&image.id);
    daemon.engine.volumes.lock().expect("no panic")[1].containers.push(own.id.clone());
    daemon.engine.containers.lock().expect("no panic").push(own);
    let mut nameless = image;
    nameless.id = format!("sha256:{:064x}", 0xdef);
    nameless.tags.clear();
    daemon.engine.images.lock().expect("no panic").push(nameless);
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_on_the_disk_is_counted() {
    let daemon = world().await;
    for program in programs() {
        let shown = squeezed(&daemon.docker_by(program, "system df", b"").await.stdout);
        let expected = [
            "TYPE TOTAL ACTIVE SIZE RECLAIMABLE",
            "Images 2 1 2.469MB 1.235MB (50%)",
            "Containers 1 1 500B 0B (0%)",
            "Local Volumes 2 1 2kB 1kB (50%)",
            "Build Cache 0 0 0B 0B",
        ];
        assert_eq!(shown, expected, "{program}");
        let all = daemon.docker_by(program, "system df -v", b"").await.stdout;
        assert!(squeezed(&all).contains(&"used 1 1kB".to_owned()), "{program}: {all}");
    }
    let (_, reply) = daemon.request("GET", "/v1.43/system/df?type=volume", b"").await;
    assert!(reply.contains(r#""Images":[]"#) && reply.contains(r#""Name":"idle""#), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prunes_take_what_nobody_uses() {
    for program in programs() {
        let daemon = world().await;
        let run = async |line: &str| {
            let output = daemon.docker_by(program, line, b"").await;
            assert_eq!(output.code, 0, "{program} {line}: {output:?}");
            output.stdout
        };
        let spared = run("network prune -f --filter label!=keep").await;
        assert_eq!(spared, "", "{program}: app is in use");
        let nameless = format!("sha256:{:064x}", 0xdef);
        let pruned = run("image prune -f").await;
        assert!(pruned.contains(&format!("deleted: {nameless}")), "{program}: {pruned}");
        assert!(pruned.contains("Total reclaimed space: 1.235MB"), "{program}: {pruned}");
        let pruned = run("system prune -f --volumes").await;
        assert!(pruned.contains("Deleted Networks:\nidle\n"), "{program}: {pruned}");
        let names: Vec<String> =
            daemon.engine.volumes.lock().expect("no panic").iter().map(|one| one.name.clone()).collect();
        // The older program asks for all that nobody uses.
        let is_old = program.starts_with("/usr/bin");
        assert_eq!(names, if is_old { vec!["used"] } else { vec!["idle", "used"] }, "{program}");
        assert_eq!(run("container prune -f").await, "Total reclaimed space: 0B\n", "{program}");
        assert_eq!(daemon.engine.images.lock().expect("no panic").len(), 1, "{program}");
    }
}
