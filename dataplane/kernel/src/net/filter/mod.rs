//! The nftables table `inet meshd`: masquerading of the way out, host ports, and what may be forwarded. Written whole in
//! one transaction by `nft`; connection tracking keeps what it knows, so no connection breaks.

#[cfg(test)]
mod tests;
mod text;

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use dataplane_model::KernelState;
use dataplane_model::kernel_state::{PacketFilter, Singleton};

use super::NetError;

/// The table, and what it looked like right after it was written.
#[derive(Default)]
pub(super) struct FilterTable {
    written: Option<(PacketFilter, String)>,
}

impl FilterTable {
    /// Records the filter that the kernel holds. A table that is ours but was changed by someone else reads as a filter
    /// that nobody can want, so that it is written again.
    pub(super) fn observe(&mut self, state: &mut KernelState) -> Result<(), NetError> {
        let Some(listed) = list()? else {
            self.written = None;
            return Ok(());
        };
        let held = match &self.written {
            Some((filter, text)) => (*text == listed).then(|| filter.clone()),
            // A meshd that has just started: the rules' comments say what they were made of.
            None => text::parse(&listed),
        };
        if self.written.is_none() {
            self.written = held.clone().map(|filter| (filter, listed));
        }
        state.filter.insert(Singleton, held.unwrap_or_else(PacketFilter::spoiled));
        Ok(())
    }

    pub(super) fn put(&mut self, filter: &PacketFilter) -> Result<(), NetError> {
        nft(&["-f", "-"], &text::render(filter))?;
        self.written = list()?.map(|listed| (filter.clone(), listed));
        Ok(())
    }

    pub(super) fn delete(&mut self) -> Result<(), NetError> {
        self.written = None;
        nft(&["-f", "-"], &text::removal()).map(|_| ())
    }
}

/// The table as `nft` shows it; `None` if there is none.
fn list() -> Result<Option<String>, NetError> {
    let output = run(&["-s", "-n", "list", "table", "inet", text::NAME], "")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn nft(arguments: &[&str], input: &str) -> Result<String, NetError> {
    let output = run(arguments, input)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(NetError::Filter { output: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
    }
}

/// In the calling thread's network namespace, which the child inherits.
fn run(arguments: &[&str], input: &str) -> Result<std::process::Output, NetError> {
    let failed = |error: io::Error| NetError::io("run nft (Debian package nftables)", error);
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().expect("asked for a pipe");
    // nft reads all of its input before it writes, so this can't wait for ever; an early end shows in its status.
    let _written = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().map_err(failed)
}
