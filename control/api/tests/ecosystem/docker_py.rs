//! docker-py, by a script beside this file: `docker_py.py`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use control_store::ReplicatedStore as _;
use tokio::process::Command;
use tokio::time::timeout;

use crate::manager_with_containers;

/// Debian's, whatever else the path has.
const PYTHON: &str = "/usr/bin/python3";
const LIMIT: Duration = Duration::from_mins(2);

/// Where `cargo xtask test` puts docker-py.
fn packages() -> PathBuf {
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python");
    assert!(packages.join("docker").exists(), "docker-py is missing: cargo xtask test installs it");
    packages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_py_drives_the_life_of_a_service() {
    let (daemon, _containers) = manager_with_containers().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ecosystem/docker_py.py");
    let running = Command::new(PYTHON)
        .args(["-B", "-s"])
        .arg(script)
        .env_clear()
        .env("PYTHONPATH", packages())
        .env("HOME", daemon.path(""))
        .env("DOCKER_HOST", format!("unix://{}", daemon.socket.display()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(LIMIT, running).await.expect("it ends in time").expect("python runs");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().last(), Some("all done"));
    let state = daemon.store.state();
    assert_eq!((state.services().len(), state.networks().len()), (0, 1), "the script cleans up");
}
