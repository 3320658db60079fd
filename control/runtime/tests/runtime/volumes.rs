//! Volumes of real containers.

use control_model::Task;
use control_model::executor::{Executor, Provisions};
use control_model::spec::Mount;
use control_runtime::VolumeSpec;
use serde_json::{Value, json};

use crate::common::{TestNode, task};

const RUNC: &str = "/usr/sbin/runc";

async fn node() -> TestNode {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[r#"ENTRYPOINT ["/toolbox"]"#, r#"VOLUME ["/scratch"]"#]).await;
    node
}

/// A task that lists `/data`, where the volume of this name is.
fn lists(volume: Mount) -> Task {
    let mut task = task("toolbox:1", &["ls", "/data"]);
    task.spec.container.mounts = vec![volume];
    task
}

fn named(name: &str) -> Mount {
    Mount { source: name.into(), ..Mount::volume("/data") }
}

#[tokio::test(flavor = "multi_thread")]
async fn named_volumes_outlive_their_containers_and_others_do_not() {
    let node = node().await;
    let labels = [("a".to_owned(), "b".to_owned())].into();
    let first = lists(Mount { volume_labels: labels, ..named("kept") });
    assert_eq!(node.output(&first).await, (0, vec!["seed".to_owned()]), "it begins with the image's content");
    let all = node.oci.volumes().expect("listed");
    let [drawn, kept] = all.as_slice() else { panic!("{all:?}") };
    let (drawn, kept) = if drawn.is_anonymous { (drawn, kept) } else { (kept, drawn) };
    assert!(drawn.is_anonymous && drawn.name.len() == 64 && drawn.mountpoint.is_dir(), "{drawn:?}");
    assert_eq!((kept.name.as_str(), kept.spec.labels["a"].as_str()), ("kept", "b"));
    for volume in [drawn, kept] {
        assert_eq!(volume.containers, [first.id.container_id()]);
        let refused = node.oci.remove_volume(&volume.name).expect_err("in use").to_string();
        assert!(refused.starts_with(&format!("remove {}: volume is in use - [", volume.name)), "{refused}");
    }
    let on_disk = node.oci.disk_use().expect("counted");
    assert_eq!(on_disk.volumes.keys().collect::<Vec<_>>().len(), 2);
    assert!(
        on_disk.volumes["kept"] > 0 && on_disk.containers.contains_key(&first.id.container_id()),
        "{on_disk:?}"
    );
    let mounts = node.oci.container_of_task(first.id).expect("known").record.mounts;
    let targets: Vec<&str> = mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/data", "/scratch"]);
    node.oci.remove(first.id).await.expect("removed");
    let left = node.oci.volumes().expect("listed");
    assert_eq!(left.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["kept"]);
    assert!(node.oci.remove_volume("kept").expect("removed") > 0);

    // One that a user has made is taken as it is, and stays empty where that is wanted.
    node.oci.create_volume("bare", &VolumeSpec::default()).expect("made");
    let bare = lists(Mount { no_copy: true, ..named("bare") });
    assert_eq!(node.output(&bare).await, (0, Vec::new()));
    let filled = lists(named("bare"));
    assert_eq!(node.output(&filled).await, (0, vec!["seed".to_owned()]));
    for task in [bare, filled] {
        node.oci.remove(task.id).await.expect("removed");
    }
    node.oci.remove_volume("bare").expect("removed");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_a_device_is_mounted_for_its_containers() {
    let node = node().await;
    let options = [("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let mut fast = lists(Mount { volume_options: options, ..named("fast") });
    fast.spec.container.args = ["cat", "/proc/self/mountinfo"].map(String::from).into();
    let (_, lines) = node.output(&fast).await;
    let data = lines.iter().find(|line| line.contains(" /data ")).expect("mounted");
    assert!(data.contains(" - tmpfs tmpfs ") && data.contains("size=1024k"), "{data}");
    node.oci.remove(fast.id).await.expect("removed");
    // Nobody has it: nothing is mounted.
    node.assert_clean();
    let wrong = lists(Mount { volume_options: [("what".into(), "x".into())].into(), ..named("wrong") });
    let error = node.oci.prepare(&wrong, &Provisions::default()).await.expect_err("refused").to_string();
    assert_eq!(error, "create wrong: invalid option: \"what\"");
    node.oci.remove_volume("fast").expect("removed");
    node.assert_clean();
}

/// A daemon before this one kept nothing about mounts: its containers go on, and nobody may take their data away.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_a_former_daemon_has_its_volumes() {
    let mut node = node().await;
    let old = lists(named("kept"));
    node.output(&old).await;
    let at = node.dir.path().join("state/tasks").join(old.id.to_string()).join("task.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&at).expect("kept")).expect("JSON");
    let fields = record.as_object_mut().expect("fields");
    assert!(fields.remove("mounts").is_some() && fields.remove("ports").is_some());
    fields.insert("host_ports".into(), json!([]));
    std::fs::write(&at, record.to_string()).expect("written");
    node.reopen(RUNC);
    let refused = node.oci.remove_volume("kept").expect_err("in use").to_string();
    assert!(refused.contains(&old.id.container_id()), "{refused}");
    node.oci.remove(old.id).await.expect("removed");
    node.oci.remove_volume("kept").expect("removed");
    node.assert_clean();
}
