//! Scenarios: conversations with the machine as text, in `scenarios/`. `MESH_REWRITE=1 cargo test` writes what the
//! machine says now into them; the diff is then to be read.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use control_model::object::Slot;
use control_model::{NodeId, ServiceId};

use super::*;

#[test]
fn scenarios() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/machine/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("there are scenarios")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        check(&file);
    }
}

fn check(file: &Path) {
    let text = std::fs::read_to_string(file).expect("readable");
    let mut world = World::new();
    let mut said = String::new();
    for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
        let commands = block.split("----").next().expect("split gives one at least").trim_end();
        write!(said, "{commands}\n----\n").expect("a string");
        for line in commands.lines().filter(|line| !line.starts_with('#')) {
            said += &world.command(line);
        }
        said.push('\n');
    }
    if std::env::var_os("MESH_REWRITE").is_some() {
        return std::fs::write(file, said.trim_end().to_owned() + "\n").expect("written");
    }
    assert_eq!(said.trim(), text.trim(), "{}", file.display());
}

struct World {
    machine: Machine,
    now: Timestamp,
    set: BTreeMap<TaskId, Task>,
    /// Of the last view: one is made after every input.
    revision: u64,
    /// The data plane takes its time; else it holds every view at once.
    busy: bool,
}

#[test]
fn the_data_plane_is_given_some_tasks_at_a_time_and_none_whose_turn_never_came() {
    let mut world = World::new();
    let all: Vec<String> = (1..=100).map(|n| format!("t{n}")).collect();
    let mut answers = world.command(&format!("set {}", all.join(" ")));
    // Preparing takes no time here.
    while let Some(next) = answers.lines().find_map(|line| line.strip_prefix("prepare ")) {
        let rest = answers.replacen(&format!("prepare {next}"), "", 1);
        answers = rest + &world.command(&format!("prepared {next}"));
    }
    assert_eq!(world.machine.begun().count(), MAX_AWAITED);
    world.command("sandboxes t1 t2:no_address");
    assert_eq!(world.machine.begun().count(), MAX_AWAITED + 2, "what is said of one makes room for one");
    let removed: Vec<String> = all.iter().map(|name| format!("{name}:desired=remove")).collect();
    world.command(&format!("change {}", removed.join(" ")));
    assert_eq!(world.machine.begun().count(), MAX_AWAITED + 2);
}

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(false),
            now: Timestamp(0),
            set: BTreeMap::new(),
            revision: 0,
            busy: false,
        }
    }

    fn command(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let actions = match words.as_slice() {
            ["after", milliseconds] => {
                self.now = self.now.after(Duration::from_millis(milliseconds.parse().expect("a number")));
                self.machine.tick(self.now)
            }
            ["deadline"] => {
                let wait = self.machine.next_deadline().map(|at| at.since(self.now));
                return wait.map_or("none\n".into(), |wait| format!("in {} ms\n", wait.as_millis()));
            }
            ["phases"] => {
                let rows = self.machine.tasks().map(|(task, phase)| format!("{} {phase:?}\n", name(task.id)));
                return rows.collect();
            }
            ["set", changes @ ..] => {
                self.set.clear();
                self.edit(changes);
                self.handle(Input::Set(self.set.clone()))
            }
            ["change", changes @ ..] => {
                let touched = self.edit(changes);
                let rows = touched.into_iter().map(|id| (id, self.set.get(&id).cloned()));
                self.handle(Input::Changed(rows.collect()))
            }
            ["found", rows @ ..] => self.handle(Input::Found(rows.iter().map(|row| found(row)).collect())),
            ["sandboxes", rows @ ..] => {
                self.handle(Input::Sandboxes(rows.iter().map(|row| sandbox(row)).collect()))
            }
            ["data", "plane", "is", "busy"] => {
                self.busy = true;
                Vec::new()
            }
            ["applied", behind] => {
                let behind: u64 = behind.parse().expect("how many views it is behind");
                self.handle(Input::Applied(self.revision - behind))
            }
            [what, task, result @ ..] => self.handle(result_of(what, id(task), result)),
            [] => Vec::new(),
            [_] => panic!("{line:?} is no command"),
        };
        actions.iter().map(|action| shown(action) + "\n").collect()
    }

    fn handle(&mut self, input: Input) -> Vec<Action> {
        let mut actions = self.machine.handle(input, self.now);
        self.revision += 1;
        actions.extend(self.machine.handle(Input::Shown(self.revision), self.now));
        if !self.busy {
            actions.extend(self.machine.handle(Input::Applied(self.revision), self.now));
        }
        actions
    }

    /// `t1`, `t1:desired=shutdown`, `t1:drained`, `t1:state=running`, `-t1`.
    fn edit(&mut self, changes: &[&str]) -> Vec<TaskId> {
        let mut touched = Vec::new();
        for change in changes {
            if let Some(gone) = change.strip_prefix('-') {
                self.set.remove(&id(gone));
                touched.push(id(gone));
                continue;
            }
            let mut parts = change.split(':');
            let task_id = id(parts.next().expect("split gives one at least"));
            let task = self.set.entry(task_id).or_insert_with(|| new_task(task_id));
            for part in parts {
                match part.split_once('=') {
                    Some(("desired", word)) => task.desired_state = state(word),
                    Some(("state", word)) => task.status.state = state(word),
                    _ if part == "drained" => task.drained = true,
                    _ => panic!("{part:?} is no property of a task"),
                }
            }
            touched.push(task_id);
        }
        touched
    }
}

fn result_of(what: &str, task: TaskId, result: &[&str]) -> Input {
    let error = || match result {
        ["error", words @ ..] => Err(ExecutorError::Failed(words.join(" "))),
        _ => Ok(()),
    };
    let exit = || match result {
        ["oom"] => Exit { code: 137, out_of_memory: true },
        [code] => Exit { code: code.parse().expect("an exit code"), out_of_memory: false },
        other => panic!("{other:?} is no exit"),
    };
    match what {
        "prepared" => Input::Prepared(task, error()),
        "started" => Input::Started(task, error().map(|()| with_health(container(task), result))),
        "health" if result == ["none"] => Input::Health(task, Ok(None)),
        "health" => {
            Input::Health(task, health(result).map(Some).ok_or(ExecutorError::Failed("ended".into())))
        }
        "exited" => Input::Exited(task, Ok(exit())),
        "stopped" => Input::Stopped(task, error()),
        "removed" => Input::Removed(task, error()),
        other => panic!("{other:?} is no command"),
    }
}

/// `starting`, `healthy` or `unhealthy`.
fn health(words: &[&str]) -> Option<HealthStatus> {
    let all = [HealthStatus::Starting, HealthStatus::Healthy, HealthStatus::Unhealthy];
    all.into_iter().find(|status| words.contains(&status.word()))
}

fn with_health(container: ContainerStatus, words: &[&str]) -> ContainerStatus {
    ContainerStatus { health: health(words), ..container }
}

/// `t1:running`, `t1:running:healthy`, `t1:made`, `t1:exited=3`, `t1:exited=3:unhealthy`.
fn found(row: &str) -> Found {
    let (name, what) = row.split_once(':').expect("task:what");
    let (what, health) = what.split_once(':').unwrap_or((what, ""));
    let task = id(name);
    let running = with_health(container(task), &[health]);
    match what.split_once('=') {
        Some((_, code)) => {
            let code = code.parse().expect("an exit code");
            Found { task, status: running, exit: Some(Exit { code, out_of_memory: false }) }
        }
        None if what == "running" => Found { task, status: running, exit: None },
        None => Found { task, status: ContainerStatus { pid: 0, ..running }, exit: None },
    }
}

#[test]
fn where_a_preparation_gives_the_namespace_the_sandbox_comes_after_it() {
    let (task, now) = (id("t1"), Timestamp(0));
    for (gives_namespaces, n_while_preparing) in [(false, 1), (true, 0)] {
        let mut machine = Machine::new(gives_namespaces);
        machine.handle(Input::Found(Vec::new()), now);
        let actions = machine.handle(Input::Set([(task, new_task(task))].into()), now);
        assert!(actions.iter().any(|action| matches!(action, Action::Prepare(_))), "{actions:?}");
        assert_eq!(machine.begun().count(), n_while_preparing);
        machine.handle(Input::Prepared(task, Ok(())), now);
        assert_eq!(machine.begun().count(), 1);
    }
}

/// `t1`, or `t1:reason`.
fn sandbox(row: &str) -> (TaskId, Result<PathBuf, String>) {
    match row.split_once(':') {
        Some((name, reason)) => (id(name), Err(reason.replace('_', " "))),
        None => (id(row), Ok(PathBuf::from(format!("/netns/{row}")))),
    }
}

fn shown(action: &Action) -> String {
    match action {
        Action::Prepare(task) => format!("prepare {}", name(task.id)),
        Action::Start(task, sandbox) => format!("start {} in {}", name(task.id), sandbox.netns.display()),
        Action::Wait(task) => format!("wait {}", name(*task)),
        Action::WatchHealth(task, known) => {
            format!("watch health of {} beyond {}", name(*task), known.word())
        }
        Action::Shutdown(task) => format!("shutdown {}", name(task.id)),
        Action::Remove(task) => format!("remove {}", name(*task)),
        Action::Forget(task) => format!("forget {}", name(*task)),
        Action::Report(task, status) => {
            let container = status.container.as_ref();
            let container = container.map_or(String::new(), |one| {
                let health = one.health.map_or(String::new(), |health| format!(" {}", health.word()));
                format!(" pid={} exit={}{health}", one.pid, one.exit_code)
            });
            let error =
                if status.error.is_empty() { String::new() } else { format!(" error={:?}", status.error) };
            format!("report {} {} {:?}{error}{container}", name(*task), status.state.as_str(), status.message)
        }
    }
}

fn id(name: &str) -> TaskId {
    TaskId::from_bits(name.trim_start_matches('t').parse().expect("t<number>"))
}

fn name(id: TaskId) -> String {
    format!("t{}", id.bits())
}

fn state(word: &str) -> TaskState {
    TaskState::ALL.into_iter().find(|state| state.as_str() == word).expect("a state")
}

fn container(task: TaskId) -> ContainerStatus {
    let pid = 100 + i32::try_from(task.bits()).expect("small");
    ContainerStatus { container_id: task.container_id(), pid, exit_code: 0, health: None }
}

fn new_task(id: TaskId) -> Task {
    Task {
        service_name: "s".into(),
        node: Some(NodeId::from_bits(1)),
        spec_version: 1,
        status: status(TaskState::Assigned, "scheduler assigned task to node", Timestamp(0)),
        ..Task::new(id, ServiceId::from_bits(1), Slot::Replica(1))
    }
}
