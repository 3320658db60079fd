//! Further processes in real containers.

use control_model::executor::{Executor, Provisions};
use control_model::{OutputStream, Task};
use control_runtime::{Exec, ExecError, ExecSpec};
use tokio::io::AsyncWriteExt as _;

use crate::common::{PATIENCE, TestNode, task};

const RUNC: &str = "/usr/sbin/runc";
const TOOLBOX: &str = "/toolbox";

/// A node with a container that stays.
async fn node() -> (TestNode, Task) {
    let node = TestNode::new(RUNC, &[]);
    node.import("toolbox:1", &[r#"ENTRYPOINT ["/toolbox"]"#, "ENV FROM=image"]).await;
    let stays = task("toolbox:1", &["echo", "up", "+", "stay"]);
    node.oci.prepare(&stays, &Provisions::default()).await.expect("prepared");
    node.oci.start(&stays, &node.sandbox).await.expect("started");
    node.line(&stays, "up").await;
    (node, stays)
}

fn spec(arguments: &[&str]) -> ExecSpec {
    let arguments = [TOOLBOX].iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
    ExecSpec { arguments, ..ExecSpec::default() }
}

/// Its code, and what it wrote to either stream.
async fn outcome(exec: Exec) -> (i32, String, String) {
    let Exec { input, mut output, ended, .. } = exec;
    let mut written = [Vec::new(), Vec::new()];
    let all = async {
        while let Some((stream, bytes)) = output.recv().await {
            written[usize::from(stream == OutputStream::Stderr)].extend(bytes);
        }
        ended.await.expect("it does not panic")
    };
    let code = tokio::time::timeout(PATIENCE, all).await.expect("in time");
    drop(input);
    let [out, err] = written.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (code, out, err)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_in_a_container_has_streams_a_code_and_its_world() {
    let (node, stays) = node().await;
    let id = stays.id.container_id();
    let run = async |spec: &ExecSpec| outcome(node.oci.exec(&id, spec).expect("it runs")).await;
    let both = run(&spec(&["echo", "out", "+", "warn", "err", "+", "exit", "3"])).await;
    assert_eq!(both, (3, "out\n".to_owned(), "err\n".to_owned()));
    let env = ExecSpec { env: vec!["OWN=x".into()], ..spec(&["env"]) };
    let (_, out, _) = run(&env).await;
    assert!(out.contains("FROM=image\n") && out.contains("OWN=x\n"), "{out}");

    let reads = ExecSpec { stdin: true, ..spec(&["copy"]) };
    let mut exec = node.oci.exec(&id, &reads).expect("it runs");
    let mut input = exec.input.take().expect("it reads");
    input.write_all(b"through").await.expect("written");
    drop(input);
    assert_eq!(outcome(exec).await, (0, "through".to_owned(), String::new()));

    let terminal = ExecSpec { tty: true, ..spec(&["terminal"]) };
    let exec = node.oci.exec(&id, &terminal).expect("it runs");
    exec.console.resize(40, 100).expect("sized");
    let (code, written, _) = outcome(exec).await;
    // The runtime turns off that the inner terminal adds carriage returns just behind the process's first step; its own adds them.
    // What comes before has two.
    assert!(code == 0 && written.trim_end() == "true" && written.ends_with("\r\n"), "{code} {written:?}");

    let missing = ExecSpec { arguments: vec!["nothing".into()], ..ExecSpec::default() };
    let (code, words, _) = run(&missing).await;
    assert_eq!(code, 127, "{words}");
    assert!(
        words.starts_with("OCI runtime exec failed: exec failed: ")
            && words.contains("\"nothing\": executable file not found in $PATH: unknown"),
        "{words}"
    );
    let stranger = ExecSpec { user: "nobody".into(), ..spec(&["env"]) };
    let refused = node.oci.exec(&id, &stranger).err().expect("no such user");
    assert_eq!(refused.to_string(), "unable to find user nobody: no matching entries in passwd file");

    node.oci.terminate(stays.id).await.expect("killed");
    let over = node.oci.exec(&id, &spec(&["env"])).err().expect("it has ended");
    assert!(matches!(over, ExecError::NotRunning(_)), "{over}");
    node.oci.remove(stays.id).await.expect("removed");
    node.assert_clean();
}
