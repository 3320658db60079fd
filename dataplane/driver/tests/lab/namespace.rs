//! Network namespaces held by an open file, and threads in them.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

#[derive(Debug)]
pub struct Ns(File);

impl Ns {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    pub fn open(path: &Path) -> Self {
        Self(File::open(path).unwrap())
    }

    /// A path that other processes can open while this value lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` on a thread in the namespace; threads that it starts are in there too.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = self.0.try_clone().unwrap();
        let entered = thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            drop(file);
            work()
        });
        entered.join().unwrap()
    }

    pub fn shell(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || shell(&command))
    }
}

/// Standard output of a command in the calling thread's namespace; it must succeed.
pub fn shell(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
