//! `docker volume` through the real CLI.

mod common;

use common::cli::programs;
use common::engine::container;
use common::{Daemon, world};
use control_api::engine::MountPoint;
use control_model::spec::MountKind;
use control_store::ReplicatedStore as _;
use serde_json::{Value, from_str, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_made_shown_and_removed() {
    for program in programs() {
        let daemon = Daemon::manager().await;
        let run = async |line: &str| {
            let output = daemon.docker_by(program, line, b"").await;
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{program} {line}");
            output.stdout
        };
        assert_eq!(run("volume create --name hello").await, "hello\n");
        assert_eq!(run("volume create hello").await, "hello\n", "it is there");
        let all = "volume create -d local --label a=b -o type=tmpfs -o device=tmpfs -o o=size=1m fast";
        assert_eq!(run(all).await, "fast\n");
        let listed = run("volume ls").await;
        let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows, [vec!["DRIVER", "VOLUME", "NAME"], vec!["local", "fast"], vec!["local", "hello"]]);
        assert_eq!(run("volume ls -q --filter label=a=b").await, "fast\n");
        assert_eq!(run("volume ls -q --filter name=ell").await, "hello\n");
        assert_eq!(run("volume ls -q --filter driver=nfs").await, "");
        let shown: Value = from_str(&run("volume inspect fast").await).expect("JSON");
        let expected = json!([{
            "CreatedAt": "2023-11-14T22:13:20Z",
            "Driver": "local",
            "Labels": { "a": "b" },
            "Mountpoint": "/volumes/fast/_data",
            "Name": "fast",
            "Options": { "type": "tmpfs", "device": "tmpfs", "o": "size=1m" },
            "Scope": "local",
        }]);
        assert_eq!(shown, expected, "{program}");
        daemon.engine.volumes.lock().expect("no panic")[0].containers.push("c".repeat(64));
        assert_eq!(run("volume ls -q --filter dangling=true").await, "hello\n");
        let in_use = daemon.docker_by(program, "volume rm fast", b"").await;
        let words = format!("remove fast: volume is in use - [{}]", "c".repeat(64));
        assert!(in_use.code == 1 && in_use.stderr.contains(&words), "{in_use:?}");
        assert_eq!(run("volume rm hello").await, "hello\n");
        assert_eq!(run("volume rm -f hello").await, "hello\n");
        let gone = daemon.docker_by(program, "volume inspect hello", b"").await;
        assert!(gone.code == 1 && gone.stderr.to_lowercase().contains("no such volume"), "{gone:?}");
    }
    let daemon = Daemon::manager().await;
    let wrong = daemon.refuses("volume create -d nothing x1").await;
    assert!(wrong.contains("plugin \"nothing\" not found"), "{wrong}");
}

/// What nobody has goes; what has a name only if it is asked for, since API 1.42.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_spares_what_is_in_use_and_what_has_a_name() {
    let daemon = Daemon::manager().await;
    let made =
        ["volume create", "volume create --label keep=1 kept", "volume create used", "volume create idle"];
    for line in made {
        daemon.prints(line).await;
    }
    let all = |daemon: &Daemon| {
        let volumes = daemon.engine.volumes.lock().expect("no panic");
        volumes.iter().map(|volume| volume.name.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(all(&daemon), "drawn idle kept used");
    daemon.engine.volumes.lock().expect("no panic")[3].containers.push("c".repeat(64));
    let (_, reply) = daemon.request("POST", "/v1.43/volumes/prune", b"").await;
    assert_eq!(reply, r#"{"VolumesDeleted":["drawn"],"SpaceReclaimed":10}"#);
    let spared = daemon.docker("volume prune -f -a --filter label!=keep").await.stdout;
    assert_eq!(spared, "Deleted Volumes:\nidle\n\nTotal reclaimed space: 10B\n");
    assert_eq!(all(&daemon), "kept used");
    let (_, reply) = daemon.request("POST", "/v1.41/volumes/prune", b"").await;
    assert_eq!(reply, r#"{"VolumesDeleted":["kept"],"SpaceReclaimed":10}"#);
    let (_, reply) = daemon.request("POST", "/v1.41/volumes/prune", b"").await;
    assert_eq!(reply, r#"{"VolumesDeleted":null,"SpaceReclaimed":0}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_and_a_service_show_their_mounts() {
    let daemon = Daemon::manager().await;
    let mounts = "--mount type=volume,src=data,dst=/data,volume-nocopy,volume-label=a=b,volume-opt=type=tmpfs,\
                  volume-opt=device=tmpfs --mount type=bind,src=/etc,dst=/host,ro";
    let create = format!(
        "service create -d --no-resolve-image --name web --constraint node.hostname==m1 {mounts} whoami:v1"
    );
    daemon.prints(&create).await;
    let format = "'{{json .Spec.TaskTemplate.ContainerSpec.Mounts}}'";
    let shown = daemon.docker(&format!("service inspect web --format {format}")).await.stdout;
    let expected = json!([
        { "Type": "volume", "Source": "data", "Target": "/data", "VolumeOptions": {
            "NoCopy": true,
            "Labels": { "a": "b" },
            "DriverConfig": { "Name": "local", "Options": { "type": "tmpfs", "device": "tmpfs" } },
        } },
        { "Type": "bind", "Source": "/etc", "Target": "/host", "ReadOnly": true },
    ]);
    assert_eq!(from_str::<Value>(&shown).expect("JSON"), expected, "{shown}");
    daemon.running("web", 1).await;
    daemon
        .prints("service update -d --mount-rm /data --mount-add type=tmpfs,dst=/t,tmpfs-mode=700 web")
        .await;
    let shown = daemon.docker(&format!("service inspect web --format {format}")).await.stdout;
    let expected = json!([
        { "Type": "tmpfs", "Target": "/t", "TmpfsOptions": { "Mode": 0o700 } },
        { "Type": "bind", "Source": "/etc", "Target": "/host", "ReadOnly": true },
    ]);
    assert_eq!(from_str::<Value>(&shown).expect("JSON"), expected, "{shown}");
    let task = daemon.store.state().tasks().iter().next().expect("made").clone();
    assert_eq!(task.node, Some(world::MANAGER));
    let mount = |kind, name: &str, source: &str, target: &str| MountPoint {
        kind,
        name: name.into(),
        source: source.into(),
        target: target.into(),
        read_only: kind == MountKind::Bind,
    };
    let mut own = container(&task);
    own.mounts = vec![
        mount(MountKind::Volume, "data", "/volumes/data/_data", "/data"),
        mount(MountKind::Bind, "", "/etc", "/host"),
    ];
    daemon.engine.containers.lock().expect("no panic").push(own);
    let shown =
        daemon.docker(&format!("inspect {} --format '{{{{json .Mounts}}}}'", task.name())).await.stdout;
    let expected = json!([
        { "Type": "volume", "Name": "data", "Source": "/volumes/data/_data", "Destination": "/data",
          "Driver": "local", "Mode": "z", "RW": true, "Propagation": "" },
        { "Type": "bind", "Source": "/etc", "Destination": "/host", "Mode": "", "RW": false,
          "Propagation": "rprivate" },
    ]);
    assert_eq!(from_str::<Value>(&shown).expect("JSON"), expected, "{shown}");
    assert_eq!(daemon.prints("ps --format {{.Mounts}}").await, "data,/etc");
}
