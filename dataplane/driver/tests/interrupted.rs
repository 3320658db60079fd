//! A driver whose process is killed in the middle of its work, over the real kernel: the next one finds what is half made and
//! makes it whole, or takes it away. Needs root.
//!
//! `MESH_DEATH_SEED=n` replays one run. All steps, over a kernel in memory: `fake_kernel`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "two_nodes uses the rest")]
mod lab;

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use dataplane_driver::{Driver, DriverOptions};
use dataplane_model::{DataPlane as _, NodeView};
use lab::picture::picture;
use lab::seam::{self, Say};
use lab::{Lab, NODE_A, NODE_B, Node, ask_tcp, serve_tcp, view};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SEED: &str = "MESH_DEATH_SEED";
/// What the process that dies is told: a [`Death`] and two directories.
const ORDERS: &str = "MESH_DEATH";
/// Every so many steps one is met, another one in each run: all of them take too long.
const STRIDE: u64 = 10;
/// Longer than any step takes.
const LONGEST_STEP_US: u64 = 4000;

/// What a driver is led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Nothing,
    First,
    Updated,
}

/// When a driver's process dies on its way.
#[derive(Debug, Clone, Copy)]
struct Death {
    goal: Goal,
    /// Steps that it takes before.
    n_steps: u64,
    moment: Moment,
}

/// When in a step.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Before,
    After,
    /// So much later than it has begun, wherever that is.
    Later(Duration),
}

impl Goal {
    const ALL: [Self; 3] = [Self::Nothing, Self::First, Self::Updated];

    fn view(self, revision: u64, vtep: std::net::Ipv4Addr) -> Option<NodeView> {
        match self {
            Self::Nothing => None,
            Self::First => Some(view::of_node(revision, vtep)),
            Self::Updated => Some(view::after_update(revision, vtep)),
        }
    }
}

impl Death {
    /// `None` if the process lived.
    fn happen(self, node: &Node) -> Option<()> {
        let orders = format!(
            "{}|{}|{}|{}|{}",
            node.options.run_dir.display(),
            node.options.bpffs_dir.display(),
            self.goal as u8,
            self.n_steps,
            match self.moment {
                Moment::Before => "before".to_owned(),
                Moment::After => "after".to_owned(),
                Moment::Later(time) => time.as_micros().to_string(),
            }
        );
        let ended = node.ns.run(move || {
            let program = std::env::current_exe().unwrap();
            let only = ["--exact", "dies", "--ignored", "--nocapture", "--quiet"];
            Command::new(program).args(only).env(ORDERS, orders).output().unwrap()
        });
        if ended.status.success() {
            return None;
        }
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.signal(), Some(Signal::SIGKILL as i32), "{self:?}: {told}");
        Some(())
    }

    fn ordered() -> (Self, DriverOptions) {
        let orders = std::env::var(ORDERS).expect("only the other tests start this one");
        let words: Vec<&str> = orders.split('|').collect();
        let [run_dir, bpffs_dir, goal, n_steps, moment] = words[..] else { panic!("{orders}") };
        let moment = match moment {
            "before" => Moment::Before,
            "after" => Moment::After,
            time => Moment::Later(Duration::from_micros(time.parse().unwrap())),
        };
        let goal = Goal::ALL[goal.parse::<usize>().unwrap()];
        let death = Self { goal, n_steps: n_steps.parse().unwrap(), moment };
        (death, DriverOptions::new(run_dir.into(), bpffs_dir.into()))
    }

    /// Counts steps in `n_begun`.
    fn say(self, n_begun: &Arc<AtomicU64>) -> Say {
        let (n_begun, n_taken) = (Arc::clone(n_begun), AtomicU64::new(0));
        let may_apply = move |_: &_| {
            let is_the_one = n_begun.fetch_add(1, Ordering::Relaxed) == self.n_steps;
            match self.moment {
                Moment::Before if is_the_one => die(),
                Moment::Later(time) if is_the_one => {
                    thread::spawn(move || {
                        thread::sleep(time);
                        die();
                    });
                }
                _ => {}
            }
            true
        };
        let applied = move || {
            let is_the_one = n_taken.fetch_add(1, Ordering::Relaxed) == self.n_steps;
            if is_the_one && matches!(self.moment, Moment::After) {
                die();
            }
        };
        Say { may_apply: Arc::new(may_apply), applied: Arc::new(applied), ..Say::default() }
    }
}

/// As by `kill -9`.
fn die() {
    kill(Pid::this(), Signal::SIGKILL).unwrap();
}

/// The process that the tests beside this start.
#[test]
#[ignore = "the others start it, and it dies"]
fn dies() {
    let (death, options) = Death::ordered();
    let n_begun = Arc::default();
    let driver = seam::start(&options, death.say(&n_begun));
    match death.goal.view(1, NODE_A) {
        Some(view) => {
            driver.set_view(view);
            let reports = driver.watch();
            let is_applied = || reports.borrow().applied_revision > 0;
            lab::wait_until("it is applied", is_applied, || format!("{:#?}", *reports.borrow()));
        }
        None => tear_down(&driver),
    }
    if n_begun.load(Ordering::Relaxed) > death.n_steps {
        // The work was done before its time.
        die();
    }
}

fn tear_down(driver: &Driver) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(driver.tear_down()).unwrap();
}

/// Another step of the way in each round, until the way is shorter.
fn dies_on_the_way(from: Goal, to: Goal) {
    let seed = std::env::var(SEED).map_or_else(|_| now(), |seed| seed.parse().unwrap());
    let name = thread::current().name().unwrap_or_default().to_owned();
    println!("{SEED}={seed} cargo test -p dataplane-driver --test interrupted {name}");
    let mut lab = Lab::new(|_| {});
    let untouched = picture(&lab.a.ns);
    lab.b.converge(view::of_node(1, NODE_B));
    serve_tcp(&lab.b.sandbox(6), 80, "there");
    let mut n_deaths = 0;
    for round in 0.. {
        let dice = mix(seed.wrapping_add(round));
        let n_steps = round * STRIDE + dice % STRIDE;
        let moment = match dice / STRIDE % 3 {
            0 => Moment::Before,
            1 => Moment::After,
            _ => Moment::Later(Duration::from_micros(dice / STRIDE / 3 % LONGEST_STEP_US)),
        };
        let death = Death { goal: to, n_steps, moment };
        let revision = 10 * round + 2;
        reach(&mut lab, from, revision);
        lab.a.kill();
        if death.happen(&lab.a).is_none() {
            break;
        }
        n_deaths += 1;
        println!("{death:?}");
        reach(&mut lab, to, revision + 1);
        check(&lab, to, &untouched);
    }
    assert!(n_deaths > 2, "{n_deaths}");
}

/// Both nodes have what `goal` says, though the other one knows nothing of endings.
fn reach(lab: &mut Lab, goal: Goal, revision: u64) {
    if let Some(view) = goal.view(revision, NODE_B) {
        lab.b.converge(view);
    }
    if lab.a.driver.is_none() {
        lab.a.start();
    }
    match goal.view(revision, NODE_A) {
        Some(view) => lab.a.converge(view),
        None => lab.a.tear_down(),
    }
}

fn check(lab: &Lab, goal: Goal, untouched: &str) {
    if goal == Goal::Nothing {
        assert_eq!(picture(&lab.a.ns), untouched);
        assert!(!lab.a.options.bpffs_dir.exists() && !lab.a.options.netns_dir().exists());
        return;
    }
    let driver = lab.a.driver();
    assert_eq!(driver.held_state(), driver.wanted_state());
    let (task, port) = if goal == Goal::First { (5, 8080) } else { (7, view::MOVED_PORT) };
    serve_tcp(&lab.a.sandbox(task), 80, "here");
    for _ in 0..4 {
        ask_tcp(&lab.client, (NODE_A, port), 10).unwrap();
    }
    if goal == Goal::First {
        ask_tcp(&lab.a.sandbox(task), (view::app(6), 80), 10).unwrap();
    }
}

#[test]
fn on_the_way_to_the_first_view() {
    dies_on_the_way(Goal::Nothing, Goal::First);
}

#[test]
fn on_the_way_to_another_view() {
    dies_on_the_way(Goal::First, Goal::Updated);
}

#[test]
fn on_the_way_out() {
    dies_on_the_way(Goal::Updated, Goal::Nothing);
}

/// The first steps are those on what is there without us.
#[test]
fn who_died_on_the_way_in_and_is_told_nothing_more_leaves_nothing() {
    let mut lab = Lab::new(|_| {});
    let untouched = picture(&lab.a.ns);
    for n_steps in 1..6 {
        lab.a.kill();
        Death { goal: Goal::First, n_steps, moment: Moment::After }.happen(&lab.a).expect("it dies");
        reach(&mut lab, Goal::Nothing, 1);
        check(&lab, Goal::Nothing, &untouched);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos().into()
}

/// Splitmix64: one number for each.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
