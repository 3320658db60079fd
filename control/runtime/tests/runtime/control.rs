//! What a user does to real containers by their ids.

use std::time::Duration;

use control_model::executor::Executor;
use control_runtime::ControlError;

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
