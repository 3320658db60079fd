//! Images from a real registry and from archives.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::{PATIENCE, TestNode, task};
use control_model::executor::{Executor, ExecutorError, Provisions};
use control_model::spec::RegistryCredentials;
use control_runtime::image::{ImageChanges, ImageError, Reference};

const RUNC: &str = "/usr/sbin/runc";
const ENTRYPOINT: &str = r#"ENTRYPOINT ["/toolbox"]"#;

/// `user` and `open sesame`, as the registry wants to have them.
const ACCOUNT: &str = "user:$2b$04$rvO9snzzPDRHFCJBnDOBIuV6CKJJyGUR0xegimSyPZynXqlOUsU4u";

/// Debian's registry on a port of its own, plain HTTP.
pub struct Registry {
    child: Child,
    pub name: String,
}

impl Registry {
    pub async fn start(dir: &Path) -> Self {
        Self::start_with(dir, "").await
    }

    /// One that answers those alone that have an [`ACCOUNT`].
    async fn private(dir: &Path) -> Self {
        let accounts = dir.join("htpasswd");
        std::fs::write(&accounts, ACCOUNT).expect("written");
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", accounts.display());
        Self::start_with(dir, &auth).await
    }

    async fn start_with(dir: &Path, more: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let config = dir.join("registry.yml");
        let storage = dir.join("registry").display().to_string();
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {storage}\n\
             http:\n  addr: 127.0.0.1:{port}\n{more}"
        );
        std::fs::write(&config, text).expect("written");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("docker-registry is installed");
        let name = format!("127.0.0.1:{port}");
        let up = async {
            while std::net::TcpStream::connect(&name).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.expect("the registry listens");
        Self { child, name }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies an image out of a node's store by skopeo.
pub fn copy_out(node: &TestNode, image: &str, target: &str, more: &[&str]) {
    let record = node.oci.images().find(image).expect("imported");
    let store = node.dir.path().join("state/images/layout");
    let blob = store.join("blobs/sha256").join(&record.manifest[7..]);
    let layout = tempfile::tempdir().expect("a temporary directory");
    std::os::unix::fs::symlink(store.join("blobs"), layout.path().join("blobs")).expect("linked");
    std::fs::copy(store.join("oci-layout"), layout.path().join("oci-layout")).expect("copied");
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"x"}}}}]}}"#,
        record.manifest,
        std::fs::metadata(blob).expect("there").len()
    );
    std::fs::write(layout.path().join("index.json"), index).expect("written");
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet"]).args(more);
    command.arg(format!("oci:{}:x", layout.path().display())).arg(target);
    assert!(command.status().expect("skopeo is installed").success(), "copied to {target}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_pulls_from_a_registry_and_pins_stay_local() {
    let source = TestNode::new(RUNC, &[]);
    source.import("toolbox:1", &[ENTRYPOINT]).await;
    let registry = Registry::start(source.dir.path()).await;
    let name = format!("{}/tools/toolbox:1", registry.name);
    // As Docker pushes it: schema 2, whose digest is not that of the image in our store.
    copy_out(
        &source,
        "toolbox:1",
        &format!("docker://{name}"),
        &["--dest-tls-verify=false", "--format", "v2s2"],
    );
    let node = TestNode::new(RUNC, &[&registry.name]);
    let reference = Reference::parse(&name).expect("valid");
    let lines = std::sync::Mutex::new(Vec::new());
    let progress = |line: &str| lines.lock().expect("not poisoned").push(line.to_owned());
    // The same image at the same time, twice: one waits for the other.
    let images = node.oci.images();
    let (first, second) =
        tokio::join!(images.pull(&reference, None, &progress), images.pull(&reference, None, &|_| {}));
    let pulled = first.expect("pulled");
    assert_eq!(pulled.id, second.expect("pulled").id);
    assert!(
        lines.lock().expect("not poisoned").iter().any(|line| line.contains("Copying")),
        "progress is told"
    );
    assert_eq!(node.output(&task(&name, &["echo", "pulled"])).await, (0, vec!["pulled".to_owned()]));
    // Without the registry: what is pinned to the digest that was pulled is here.
    drop(registry);
    let digest = pulled.repo_digests.first().expect("it has one").split_once('@').expect("name@digest").1;
    let pinned = format!("{name}@{digest}");
    assert_eq!(node.output(&task(&pinned, &["exit", "5"])).await.0, 5);
    let other = format!("{name}@sha256:{}", "0".repeat(64));
    let error = node
        .oci
        .prepare(&task(&other, &[]), &Provisions::default())
        .await
        .expect_err("not here, and no registry");
    assert_eq!(error, ExecutorError::Rejected(format!("No such image: {other}")));
    for container in node.oci.list_containers() {
        node.oci.remove(container.record.task).await.expect("removed");
    }
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_does_not_have_is_said_in_dockers_words() {
    let node = TestNode::new(RUNC, &[]);
    let registry = Registry::start(node.dir.path()).await;
    let reference = Reference::parse(&format!("{}/nothing:1", registry.name)).expect("valid");
    let error = node.oci.images().pull(&reference, None, &|_| {}).await.expect_err("not there");
    let expected =
        format!("manifest for {}/nothing:1 not found: manifest unknown: manifest unknown", registry.name);
    assert_eq!(error.to_string(), expected);
    assert!(node.oci.images().list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_registry_gives_its_images_to_those_it_knows() {
    let source = TestNode::new(RUNC, &[]);
    source.import("toolbox:1", &[ENTRYPOINT]).await;
    let registry = Registry::private(source.dir.path()).await;
    let name = format!("{}/toolbox:1", registry.name);
    let login = ["--dest-tls-verify=false", "--dest-creds", "user:open sesame"];
    copy_out(&source, "toolbox:1", &format!("docker://{name}"), &login);
    let node = TestNode::new(RUNC, &[&registry.name]);
    let reference = Reference::parse(&name).expect("valid");
    let known = |password: &str| RegistryCredentials {
        username: "user".into(),
        password: password.into(),
        ..RegistryCredentials::default()
    };
    let images = node.oci.images();
    for credentials in [None, Some(known("open"))] {
        let error =
            images.pull(&reference, credentials.as_ref(), &|_| {}).await.expect_err("refused").to_string();
        let expected = format!(
            "pull access denied for {}/toolbox, repository does not exist or may require 'docker login'",
            registry.name
        );
        assert_eq!(error, expected);
    }
    let configuration = images.configuration_at_registry(&reference, Some(&known("open sesame"))).await;
    assert!(configuration.is_ok(), "{configuration:?}");
    // A task brings its service's.
    let mut stranger = task(&name, &["exit", "4"]);
    let refused = node.oci.prepare(&stranger, &Provisions::default()).await.expect_err("unknown");
    assert_eq!(refused, ExecutorError::Rejected(format!("No such image: {name}")));
    stranger.spec.container.registry = Some(known("open sesame"));
    assert_eq!(node.output(&stranger).await.0, 4);
    node.oci.remove(stranger.id).await.expect("removed");

    let login = async |password: &str| images.login(&registry.name, &known(password)).await;
    assert!(login("open sesame").await.is_ok());
    let error = login("open").await.expect_err("unknown").to_string();
    assert!(error.starts_with(&format!("login attempt to {} failed: ", registry.name)), "{error}");
    // What was pulled goes back under another name, to those it knows.
    let other = Reference::parse(&format!("{}/copies/toolbox:2", registry.name)).expect("valid");
    images.tag(&name, &other).expect("here");
    let denied = images.push(&other, None, &|_| {}).await.expect_err("unknown").to_string();
    assert_eq!(denied, "denied: requested access to the resource is denied");
    let (digest, _) = images.push(&other, Some(&known("open sesame")), &|_| {}).await.expect("pushed");
    let there = images.manifest_at_registry(&other, Some(&known("open sesame"))).await.expect("there");
    assert!(String::from_utf8_lossy(&there).contains("layers"));
    let pinned = Reference::parse(&format!("{}/copies/toolbox@{digest}", registry.name)).expect("valid");
    assert!(images.manifest_at_registry(&pinned, Some(&known("open sesame"))).await.is_ok(), "{digest}");
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_tells_what_the_registry_has() {
    let node = TestNode::new(RUNC, &[]);
    // Its layer is not compressed here; at the registry it is.
    node.import("toolbox:1", &[ENTRYPOINT]).await;
    let registry = Registry::private(node.dir.path()).await;
    let user = RegistryCredentials {
        username: "user".into(),
        password: "open sesame".into(),
        ..RegistryCredentials::default()
    };
    let images = node.oci.images();
    let name = Reference::parse(&format!("{}/toolbox:1", registry.name)).expect("valid");
    images.tag("toolbox:1", &name).expect("here");
    let (digest, len) = images.push(&name, Some(&user), &|_| {}).await.expect("pushed");
    let there = images.manifest_at_registry(&name, Some(&user)).await.expect("there");
    assert!(String::from_utf8_lossy(&there).contains("tar+gzip"));
    assert_eq!(len, there.len() as u64);
    let pinned = Reference::parse(&format!("{}/toolbox@{digest}", registry.name)).expect("valid");
    assert_eq!(images.manifest_at_registry(&pinned, Some(&user)).await.expect("by its digest"), there);
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_saved_with_its_names_and_has_a_history() {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[ENTRYPOINT]).await;
    let images = node.oci.images();
    images.tag("toolbox:1", &Reference::parse("toolbox:2").expect("valid")).expect("here");
    let names = ["toolbox:1", "toolbox:2"].map(String::from);
    let saved = images.save(&names).await.expect("saved");
    let other = TestNode::new(RUNC, &[]);
    let mut stream = tokio::fs::File::open(&saved.path).await.expect("there");
    let mut loaded = other.oci.images().load(&mut stream).await.expect("loaded");
    loaded.sort_unstable();
    assert_eq!(loaded, names);
    let path = saved.path.clone();
    drop(saved);
    assert!(!path.exists());
    let history = images.history("toolbox:1").expect("known");
    assert!(!history.is_empty() && history.iter().any(|step| step.size_bytes > 0), "{history:?}");
    node.import("another:1", &[r#"ENTRYPOINT ["/another"]"#]).await;
    let several = images.save(&["toolbox:1".to_owned(), "another:1".to_owned()]).await.expect_err("two");
    assert!(several.to_string().contains("several images"), "{several}");
    other.assert_clean();
    node.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_loaded_compressed_or_not() {
    let source = TestNode::new(RUNC, &[]);
    source.import("toolbox:1", &[ENTRYPOINT, "LABEL a=b"]).await;
    let docker = source.dir.path().join("docker.tar");
    copy_out(&source, "toolbox:1", &format!("docker-archive:{}:tools/toolbox:2", docker.display()), &[]);
    let oci = source.dir.path().join("oci.tar");
    copy_out(&source, "toolbox:1", &format!("oci-archive:{}:toolbox:3", oci.display()), &[]);
    assert!(Command::new("gzip").arg(&docker).status().expect("gzip runs").success());
    let node = TestNode::new(RUNC, &[]);
    for (file, name) in [("docker.tar.gz", "tools/toolbox:2"), ("oci.tar", "toolbox:3")] {
        let mut stream = tokio::fs::File::open(source.dir.path().join(file)).await.expect("there");
        assert_eq!(
            node.oci.images().load(&mut stream).await.unwrap_or_else(|error| panic!("{file}: {error}")),
            [name]
        );
        assert_eq!(node.oci.images().inspect(name).expect("here").record.labels["a"], "b");
        assert_eq!(node.output(&task(name, &["exit", "6"])).await.0, 6);
    }
    let mut nonsense = &b"this is no archive, and it is longer than nothing"[..];
    assert!(matches!(node.oci.images().load(&mut nonsense).await, Err(ImageError::BadArchive(_))));
    let scratch = std::fs::read_dir(node.dir.path().join("state/images/tmp")).expect("there").count();
    assert_eq!(scratch, 0, "nothing is left of uploads");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_loaded_whose_layer_was_imported() {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[ENTRYPOINT, "LABEL a=b"]).await;
    let file = node.dir.path().join("docker.tar");
    copy_out(&node, "toolbox:1", &format!("docker-archive:{}:tools/toolbox:2", file.display()), &[]);
    // The layer stays, as that of another image; the archive's own has to be unpacked.
    node.import("other:1", &[ENTRYPOINT]).await;
    node.oci.remove_image("toolbox:1").await.expect("unused");
    let mut stream = tokio::fs::File::open(&file).await.expect("there");
    assert_eq!(node.oci.images().load(&mut stream).await.expect("loaded"), ["tools/toolbox:2"]);
    assert_eq!(node.output(&task("tools/toolbox:2", &["exit", "6"])).await.0, 6);
    assert_eq!(node.output(&task("other:1", &["exit", "7"])).await.0, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_imports_change_nothing() {
    let node = TestNode::new(RUNC, &[]);
    let name = Reference::parse("x:1").expect("valid");
    let mut cut = Vec::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("file").expect("short");
    header.set_size(10_000);
    header.set_cksum();
    cut.write_all(header.as_bytes()).expect("memory");
    for bytes in
        [b"no tar at all, though long enough to be looked at ".repeat(20), cut, b"\x1f\x8bbroken".to_vec()]
    {
        let (mut stream, changes) = (bytes.as_slice(), ImageChanges::default());
        let result = node.oci.images().import(&mut stream, Some(&name), &changes, "").await;
        let error = result.expect_err("refused");
        assert!(matches!(error, ImageError::BadArchive(_)), "{error}");
    }
    assert!(node.oci.images().list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_in_use_stay_and_unused_ones_leave_nothing() {
    let mut node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[ENTRYPOINT]).await;
    node.oci.images().tag("toolbox:1", &Reference::parse("other:2").expect("valid")).expect("tagged");
    let user = task("toolbox:1", &["exit", "0"]);
    node.output(&user).await;
    let (untagged, deleted) = node.oci.remove_image("other:2").await.expect("one of two names");
    assert_eq!((untagged, deleted), (vec!["other:2".to_owned()], None));
    assert!(matches!(node.oci.remove_image("toolbox:1").await, Err(ImageError::InUse { .. })));
    node.reopen(RUNC);
    assert!(
        matches!(node.oci.remove_image("toolbox:1").await, Err(ImageError::InUse { .. })),
        "also after a restart"
    );
    node.oci.remove(user.id).await.expect("removed");
    let (untagged, deleted) = node.oci.remove_image("toolbox:1").await.expect("unused");
    assert_eq!(untagged, ["toolbox:1"]);
    assert!(deleted.is_some());
    for dir in ["rootfs", "layout/blobs/sha256", "tmp"] {
        let left = std::fs::read_dir(node.dir.path().join("state/images").join(dir)).expect("there").count();
        assert_eq!(left, 0, "{dir}");
    }
    assert!(matches!(node.oci.remove_image("toolbox:1").await, Err(ImageError::NotFound(_))));
}
