//! A handle on a process that is no child of ours and whose number can't be reused under us (pidfd).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process.
#[derive(Debug)]
pub(super) struct ProcessFd(OwnedFd);

impl ProcessFd {
    /// The process with this id, if it lives and its command line is the expected one. The check comes after the
    /// handle, so that it is about the process that the handle means.
    pub fn open_if(pid: i32, expected: impl FnOnce(&str) -> bool) -> Option<Self> {
        let process = Self::open(pid).ok()?;
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        // A zombie's command line is empty.
        (!command_line.is_empty() && expected(&String::from_utf8_lossy(&command_line))).then_some(process)
    }

    fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).expect("descriptors fit");
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Returns when the process has ended.
    pub async fn ended(self) -> io::Result<()> {
        // SAFETY: the registration owns the descriptor, so it stays open and the same until the registration is gone.
        let registered = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        registered.readable().await.map(|_| ())
    }
}
