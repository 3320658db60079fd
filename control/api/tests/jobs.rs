//! Jobs through the real CLI, with the real leader loops.

mod common;

use common::Daemon;
use common::cli::programs;
use control_model::{Task, TaskState};

const CREATE: &str = "service create --no-resolve-image";

impl Daemon {
    /// Waits until so many tasks of the service's current run have ended well, and none runs.
    async fn complete(&self, service: &str, count: usize) {
        self.until(|state| {
            let Some(service) = state.service_by_name(service) else { return false };
            let of_run = |task: &&Task| task.job_iteration == service.job_iteration();
            let tasks: Vec<&Task> =
                state.tasks_of_service(service.id).map(AsRef::as_ref).filter(of_run).collect();
            tasks.len() == count && tasks.iter().all(|task| task.status.state == TaskState::Complete)
        })
        .await;
    }

    async fn listed(&self, service: &str) -> String {
        self.prints(&format!("service ls --filter name={service} --format '{{{{.Mode}}}} {{{{.Replicas}}}}'"))
            .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_lives_through_all_its_commands() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let run = async |line: &str| {
            let output = daemon.docker_by(program, line, b"").await;
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{program} {line}");
            output.stdout.trim().to_owned()
        };
        let job = "--mode replicated-job --replicas 5 --max-concurrent 2";
        let created = run(&format!("{CREATE} --name work {job} whoami:v1")).await;
        assert!(created.ends_with("job complete"), "{created}");
        assert_eq!(daemon.listed("work").await, "replicated job 0/2 (5/5 completed)");
        // The CLI names slot 0 by its node.
        let shown = run("service ps work --format '{{.Name}} {{.DesiredState}}'").await;
        let numbered: Vec<&str> =
            shown.lines().filter(|line| line.starts_with("work.") && line.len() < 20).collect();
        assert_eq!(numbered, ["work.1 Complete", "work.2 Complete", "work.3 Complete", "work.4 Complete"]);
        assert_eq!(shown.lines().count(), 5, "{shown}");

        let again = run("service update --force work").await;
        assert!(again.ends_with("job complete"), "{again}");
        assert_eq!(run("service inspect --format '{{.JobStatus.JobIteration.Index}}' work").await, "1");
        assert_eq!(run("service ps work -q").await.lines().count(), 10, "the run before is history");
        let scaled = run("service scale work=3").await;
        assert!(scaled.starts_with("work scaled to 3") && scaled.ends_with("job complete"), "{scaled}");
        assert_eq!(daemon.listed("work").await, "replicated job 0/2 (3/3 completed)");
        assert_eq!(run("service ls -q --filter mode=replicated-job").await.lines().count(), 1);
        assert_eq!(run("service ls -q --filter mode=replicated").await, "");
        assert_eq!(run("service rm work").await, "work");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_global_job_runs_once_on_each_node() {
    let daemon = Daemon::manager().await;
    let created = daemon.prints(&format!("{CREATE} --name each --mode global-job whoami:v1")).await;
    assert!(created.ends_with("job complete"), "{created}");
    daemon.complete("each", 3).await;
    assert_eq!(daemon.listed("each").await, "global job 0/0 (3/3 completed)");
    let nodes = daemon.prints("service ps each --format '{{.Node}} {{.DesiredState}}'").await;
    let mut nodes: Vec<&str> = nodes.lines().collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["m1 Complete", "w1 Complete", "w2 Complete"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_goes_on_is_counted_and_ends_with_the_next_one() {
    let daemon = Daemon::manager().await;
    let job = "--mode replicated-job --replicas 4 --max-concurrent 2";
    daemon.prints(&format!("{CREATE} -d --name long {job} endless:v1")).await;
    daemon
        .until(|state| {
            state.tasks().iter().filter(|task| task.status.state == TaskState::Running).count() == 2
        })
        .await;
    assert_eq!(daemon.listed("long").await, "replicated job 2/2 (0/4 completed)");
    daemon.prints("service update -d --no-resolve-image --image whoami:v1 long").await;
    daemon.complete("long", 4).await;
    assert_eq!(daemon.listed("long").await, "replicated job 0/2 (4/4 completed)");
    // Back to the spec before is another run of it.
    assert_eq!(daemon.prints("service rollback -d long").await, "long");
    let shown = "service inspect --format '{{.JobStatus.JobIteration.Index}} {{.UpdateStatus}}' long";
    assert_eq!(daemon.prints(shown).await, "2 <nil>");
}
