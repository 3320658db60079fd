//! What a user does to real containers by their ids.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use control_model::executor::Executor;
use control_model::spec::Mount;
use control_runtime::{ControlError, CopyError, Overwriting, Unpacking};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::common::{TestNode, task};

const RUNC: &str = "/usr/sbin/runc";

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_looked_at_and_ended() {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[r#"ENTRYPOINT ["/toolbox"]"#]).await;
    let mut stays = task("toolbox:1", &["echo", "up", "+", "stay"]);
    stays.spec.resources.limits.memory_bytes = 64 << 20;
    let pid = node.run(&stays).await.pid;
    node.line(&stays, "up").await;
    let id = stays.id.container_id();

    let usage = node.oci.usage(&id).expect("it runs");
    assert_eq!((usage.n_pids, usage.memory.limit_bytes), (1, 64 << 20), "{usage:?}");
    assert!(usage.cpu.total_ns > 0 && usage.cpu.host_ns > usage.cpu.total_ns, "{usage:?}");
    assert!(usage.memory.bytes > 0 && usage.memory.bytes < 64 << 20, "{usage:?}");
    assert!(usage.interfaces.is_empty(), "the sandbox has nothing but its loopback: {usage:?}");

    let table = node.oci.top(&id, &["-ef".to_owned()]).await.expect("it runs");
    let [row] = table.rows.as_slice() else { panic!("{table:?}") };
    assert_eq!(row.len(), table.titles.len());
    assert!(
        row.contains(&pid.to_string()) && row.last().is_some_and(|cmd| cmd.starts_with("/toolbox")),
        "{row:?}"
    );
    let wrong = node.oci.top(&id, &["-o".to_owned(), "comm".to_owned()]).await.expect_err("no ids");
    assert_eq!(wrong.to_string(), "ps: Couldn't find PID field in ps output");

    let wrong = node.oci.kill(&id, "NOTHING").await.expect_err("no signal");
    assert_eq!(wrong.to_string(), "invalid signal: NOTHING");
    // It has no end by this one.
    node.oci.kill(&id, "term").await.expect("sent");
    assert!(node.oci.stop(&id, Some("SIGHUP"), Some(Duration::from_millis(50))).await.expect("stopped"));
    assert_eq!(node.oci.wait(stays.id).await.expect("ended").code, 137);
    assert!(!node.oci.stop(&id, None, None).await.expect("it is stopped"));
    let over = node.oci.usage(&id).expect_err("it has ended");
    assert!(matches!(over, ControlError::NotRunning(_)), "{over}");
    assert!(matches!(node.oci.kill("x", "9").await, Err(ControlError::Unknown(_))));
    node.oci.remove(stays.id).await.expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_out_of_a_container_and_into_it() {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[r#"ENTRYPOINT ["/toolbox"]"#]).await;
    let mut stays = task("toolbox:1", &["write", "/vol/said", "hello", "+", "stay"]);
    stays.spec.container.mounts = vec![Mount { source: "copied".into(), ..Mount::volume("/vol") }];
    node.run(&stays).await;
    node.line(&stays, "written").await;
    let (oci, id) = (&node.oci, stays.id.container_id());
    // What is mounted is there, and what is the kernel's is not.
    let archive = oci.pack(&id, "/vol", Vec::new()).expect("packed");
    assert!(String::from_utf8_lossy(&archive).contains("vol/said"));
    let proc = oci.pack(&id, "/proc", Vec::new()).expect("packed");
    assert_eq!(tar::Archive::new(&proc[..]).entries().expect("an archive").count(), 1);
    let how = Unpacking { overwriting: Overwriting::SameKind, is_users: true };
    // Nobody is its user: the owner is the archive's.
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o640);
    header.set_uid(1234);
    header.set_gid(5678);
    header.set_mtime(1_000_000_000);
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    archive.append_data(&mut header, "made/new", &b"hello"[..]).expect("packed");
    let archive = archive.into_inner().expect("packed").finish().expect("compressed");
    oci.unpack(&id, "/vol", how, &archive[..]).expect("unpacked");
    let put = node.dir.path().join("state/volumes/copied/_data/made/new");
    assert_eq!(std::fs::read_to_string(&put).expect("there"), "hello");
    let there = std::fs::metadata(&put).expect("there");
    assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), (1234, 5678, 0o640));
    assert_eq!(there.mtime(), 1_000_000_000);
    let stat = oci.path_stat(&id, "/vol/made/new").expect("there");
    assert_eq!((stat.size_bytes, stat.modified_ns), (5, 1_000_000_000_000_000_000));
    let missing = oci.path_stat(&id, "/nothing").expect_err("not there");
    assert!(matches!(missing, CopyError::NotFound), "{missing}");

    let mut guarded = task("toolbox:1", &["stay"]);
    guarded.spec.container.read_only = true;
    node.run(&guarded).await;
    let refused = oci.unpack(&guarded.id.container_id(), "/", how, &archive[..]).expect_err("read-only");
    assert_eq!(refused.to_string(), "container rootfs is marked read-only");
    for one in [&stays, &guarded] {
        oci.terminate(one.id).await.expect("ended");
        oci.wait(one.id).await.expect("ended");
    }
    // One that has ended has its own files yet.
    assert!(oci.path_stat(&id, "/toolbox").expect("there").size_bytes > 0);
    for one in [stays, guarded] {
        oci.remove(one.id).await.expect("removed");
    }
    oci.remove_volume("copied").expect("removed");
    node.assert_clean();
}
