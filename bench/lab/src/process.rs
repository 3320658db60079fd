//! Running programs and waiting for facts.

use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How often [`wait_until`] looks.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub stdout: String,
    pub stderr: String,
    /// Exit code; -1 when it was killed by a signal.
    pub code: i32,
}

impl Captured {
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// Both outputs, for messages.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl From<Output> for Captured {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

/// Runs a program to its end, whatever its end is.
pub fn try_run(program: &str, args: &[&str]) -> Result<Captured> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {program}"))?;
    Ok(output.into())
}

/// Runs a program that must succeed and returns its standard output.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let captured = try_run(program, args)?;
    if !captured.success() {
        bail!("`{program} {}` failed ({}): {}", args.join(" "), captured.code, captured.text().trim());
    }
    Ok(captured.stdout)
}

/// Waits until `fact` holds and returns how long that took; an error names `what` was waited for and how far it was.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut fact: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        let looked = fact();
        if let Ok(Some(value)) = looked {
            return Ok((value, start.elapsed()));
        }
        if start.elapsed() >= limit {
            let detail = looked.err().map(|e| format!(": {e:#}")).unwrap_or_default();
            bail!("waited {limit:?} in vain for {what}{detail}");
        }
        sleep(POLL_INTERVAL);
    }
}
