//! An image's HEALTHCHECK, from wherever the image comes.

use std::path::{Path, PathBuf};
use std::process::Command;

use control_model::executor::Executor;
use control_model::object::HealthStatus;
use control_model::spec::HealthConfig;
use control_runtime::image::Reference;
use serde_json::Value;

use crate::common::{PATIENCE, TestNode, task};
use crate::images::{Registry, copy_out};

const RUNC: &str = "/usr/sbin/runc";
const ENTRYPOINT: &str = r#"ENTRYPOINT ["/toolbox"]"#;
const CHECK: &str = r#"HEALTHCHECK --interval=20ms --retries=2 CMD ["/toolbox", "has", "/data/seed"]"#;

/// A `docker save` archive of the toolbox, whose configuration has the check as Docker writes it.
async fn docker_archive(node: &TestNode) -> PathBuf {
    node.import("toolbox:1", &[ENTRYPOINT]).await;
    let plain = node.dir.path().join("plain.tar");
    copy_out(node, "toolbox:1", &format!("docker-archive:{}:toolbox:9", plain.display()), &[]);
    let checked = node.dir.path().join("checked.tar");
    let mut written = tar::Builder::new(std::fs::File::create(&checked).expect("made"));
    let mut read = tar::Archive::new(std::fs::File::open(&plain).expect("there"));
    for entry in read.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let (mut header, mut bytes) = (entry.header().clone(), Vec::new());
        let path = entry.path().expect("a name").into_owned();
        std::io::copy(&mut entry, &mut bytes).expect("read");
        if let Ok(mut configuration) = serde_json::from_slice::<Value>(&bytes)
            && configuration["rootfs"].is_object()
        {
            let test = ["CMD", "/toolbox", "has", "/data/seed"];
            configuration["config"]["Healthcheck"] =
                serde_json::json!({ "Test": test, "Interval": 20_000_000, "Retries": 2 });
            bytes = configuration.to_string().into_bytes();
        }
        header.set_size(bytes.len() as u64);
        written.append_data(&mut header, path, bytes.as_slice()).expect("written");
    }
    written.finish().expect("written");
    checked
}

/// The image's check decides about a container whose service says nothing, and `--no-healthcheck` puts an end to it.
async fn check_decides(node: &TestNode, image: &str) {
    let plain = task(image, &["stay"]);
    node.run(&plain).await;
    let health = node.oci.health(plain.id, HealthStatus::Starting);
    let health = tokio::time::timeout(PATIENCE, health).await.expect("in time");
    assert_eq!(health, Ok(Some(HealthStatus::Healthy)), "{image}");
    let mut without = task(image, &["stay"]);
    let none = HealthConfig { test: vec!["NONE".into()], ..HealthConfig::default() };
    without.spec.container.health = Some(none);
    node.run(&without).await;
    assert_eq!(node.oci.container_of_task(without.id).expect("known").health, None, "{image}");
    for task in [plain, without] {
        node.oci.terminate(task.id).await.expect("killed");
        node.oci.remove(task.id).await.expect("removed");
    }
    let shown = node.oci.images().inspect(image).expect("here").health.expect("it is shown");
    assert_eq!((shown.test.join(" ").as_str(), shown.retries), ("CMD /toolbox has /data/seed", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_images_check_is_kept_by_loads_and_pulls_and_imports() {
    let source = TestNode::new(RUNC, &[]);
    let archive = docker_archive(&source).await;
    let node = TestNode::new(RUNC, &[]);
    node.import("imported:1", &[ENTRYPOINT, CHECK]).await;
    check_decides(&node, "imported:1").await;
    let loader = TestNode::new(RUNC, &[]);
    let mut stream = tokio::fs::File::open(&archive).await.expect("there");
    assert_eq!(loader.oci.images().load(&mut stream).await.expect("loaded"), ["toolbox:9"]);
    check_decides(&loader, "toolbox:9").await;
    // As Docker pushes it, and as BuildKit does.
    let registry = Registry::start(source.dir.path()).await;
    push(&format!("docker-archive:{}", archive.display()), &registry.name, "docker");
    copy_out(
        &node,
        "imported:1",
        &format!("docker://{}/toolbox:oci", registry.name),
        &["--dest-tls-verify=false"],
    );
    let puller = TestNode::new(RUNC, &[&registry.name]);
    for tag in ["docker", "oci"] {
        let name = format!("{}/toolbox:{tag}", registry.name);
        let reference = Reference::parse(&name).expect("valid");
        puller.oci.images().pull(&reference, None, &|_| {}).await.expect("pulled");
        check_decides(&puller, &name).await;
    }
    for node in [&node, &loader, &puller] {
        node.assert_clean();
    }
}

fn push(source: &str, registry: &str, tag: &str) {
    let target = format!("docker://{registry}/toolbox:{tag}");
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", source, &target]);
    assert!(command.status().expect("skopeo is installed").success(), "{target}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_lost_its_check_is_another_than_one_that_has_it() {
    let source = TestNode::new(RUNC, &[]);
    let archive = docker_archive(&source).await;
    let node = TestNode::new(RUNC, &[]);
    let load = async |file: &Path| {
        let mut stream = tokio::fs::File::open(file).await.expect("there");
        node.oci.images().load(&mut stream).await.expect("loaded");
        node.oci.images().find("toolbox:9").expect("here").id
    };
    let checked = load(&archive).await;
    let plain = load(&source.dir.path().join("plain.tar")).await;
    assert_ne!(checked, plain);
    assert_eq!(load(&archive).await, checked, "the same once more is the same");
}
