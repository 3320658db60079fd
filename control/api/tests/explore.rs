mod common;
use common::Daemon;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explore() {
    let d = Daemon::manager().await;
    for p in common::cli::programs() {
    for line in std::fs::read_to_string("/tmp/h-lines").unwrap().lines() {
        let o = d.docker_by(p, line, b"").await;
        println!("### docker {line}  [{}]\n{}{}", o.code, o.stdout, if o.stderr.is_empty() { String::new() } else { format!("--stderr\n{}", o.stderr) });
    }}
}
