use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// Longer than a busy machine needs; a test that fails ends by it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells what it was asked, and does what it is told to.
#[derive(Clone)]
struct Told {
    asked: mpsc::Sender<String>,
    answers: Arc<Mutex<mpsc::Receiver<Result<(), KernelError>>>>,
}

impl Sockets for Told {
    fn reset(&self, sandbox: Option<&SandboxId>, peers: &BTreeSet<Ipv4Addr>) -> Result<(), KernelError> {
        let place = sandbox.map_or("node", |id| &id.0);
        self.asked.send(format!("{place}: {peers:?}")).unwrap();
        // Nobody answers any more: the test is over.
        self.answers.lock().unwrap().recv().unwrap_or(Ok(()))
    }

    fn peers(&self, _: Option<&SandboxId>) -> Result<BTreeSet<Ipv4Addr>, KernelError> {
        Ok(BTreeSet::new())
    }
}

/// Dropped in this order: the thread ends when nobody answers it.
struct Bench {
    answers: mpsc::Sender<Result<(), KernelError>>,
    resets: Resets,
    asked: mpsc::Receiver<String>,
}

impl Bench {
    fn new() -> Self {
        let ((asked, log), (answers, taken)) = (mpsc::channel(), mpsc::channel());
        let told = Told { asked, answers: Arc::new(Mutex::new(taken)) };
        Self { answers, resets: Resets::start(told).unwrap(), asked: log }
    }

    fn asked(&self) -> String {
        self.asked.recv_timeout(PATIENCE).expect("a reset is tried")
    }

    fn fail(&self) {
        self.answers.send(Err(KernelError("told to fail".into()))).unwrap();
    }

    fn succeed(&self) {
        self.answers.send(Ok(())).unwrap();
    }
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

fn reset(addresses: &[u8], sandboxes: &[&str], in_node: bool) -> SocketReset {
    SocketReset {
        vni: Vni::new(4096).unwrap(),
        addresses: Arc::new(addresses.iter().copied().map(address).collect()),
        sandboxes: sandboxes.iter().map(|id| SandboxId((*id).into())).collect(),
        in_node,
    }
}

#[test]
fn resets_are_taken_in_order_and_nobody_waits_for_them() {
    let bench = Bench::new();
    bench.resets.push(&reset(&[5], &["t1", "t2"], true));
    bench.resets.push(&reset(&[6], &["t1"], false));

    for expected in ["t1: {10.0.0.5}", "t2: {10.0.0.5}", "node: {10.0.0.5}", "t1: {10.0.0.6}"] {
        assert_eq!(bench.asked(), expected);
        bench.succeed();
    }
    bench.resets.finish();
}

#[test]
fn only_what_failed_is_tried_again_and_others_need_not_wait() {
    let bench = Bench::new();
    bench.resets.push(&reset(&[5], &["t1", "t2"], false));
    bench.resets.push(&reset(&[6], &["t3"], false));

    assert_eq!(bench.asked(), "t1: {10.0.0.5}");
    bench.fail();
    for expected in ["t2: {10.0.0.5}", "t3: {10.0.0.6}"] {
        assert_eq!(bench.asked(), expected);
        bench.succeed();
    }
    assert_eq!(bench.asked(), "t1: {10.0.0.5}");
    assert_eq!(bench.resets.errors(), ["sockets to tasks of network 4096 that are gone: told to fail"]);
    bench.succeed();
    bench.resets.finish();
}

#[test]
fn a_reset_that_always_fails_is_given_up() {
    let bench = Bench::new();
    bench.resets.push(&reset(&[5], &["t1"], false));
    for _ in 0..ATTEMPTS {
        assert_eq!(bench.asked(), "t1: {10.0.0.5}");
        bench.fail();
    }
    bench.resets.push(&reset(&[6], &["t1"], false));
    assert_eq!(bench.asked(), "t1: {10.0.0.6}");
    assert_eq!(bench.resets.errors(), Vec::<String>::new());
    bench.succeed();
    bench.resets.finish();
}

#[test]
fn an_address_that_is_back_is_spared_also_by_the_reset_that_is_under_way() {
    let bench = Bench::new();
    bench.resets.push(&reset(&[5, 6], &["t1", "t2"], false));
    bench.resets.push(&reset(&[6], &["t1"], false));
    assert_eq!(bench.asked(), "t1: {10.0.0.5, 10.0.0.6}");

    thread::scope(|scope| {
        let spare = scope.spawn(|| bench.resets.spare(|_, at| *at == address(6)));
        // Spared for those that wait, before it waits for the one that is under way.
        while bench.resets.shared.lock().jobs.len() > 1 {
            thread::yield_now();
        }
        assert!(!spare.is_finished());
        bench.succeed();
        spare.join().unwrap();
    });

    assert_eq!(bench.asked(), "t2: {10.0.0.5}");
    bench.succeed();
    bench.resets.push(&reset(&[7], &["t1"], false));
    assert_eq!(bench.asked(), "t1: {10.0.0.7}");
    bench.succeed();
}

#[test]
fn so_many_wait_at_a_time() {
    let bench = Bench::new();
    bench.resets.push(&reset(&[5], &["t1"], false));
    assert_eq!(bench.asked(), "t1: {10.0.0.5}");
    for _ in 0..2 * MAX_WAITING {
        bench.resets.push(&reset(&[6], &["t1"], false));
    }
    assert_eq!(bench.resets.shared.lock().jobs.len(), MAX_WAITING);
    bench.succeed();
}
