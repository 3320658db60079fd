//! The real `docker` program against a [`Daemon`].

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::Daemon;

/// What the program printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

/// The programs to test with: Docker's own and Debian's, where they are installed.
pub fn programs() -> Vec<&'static str> {
    let found: Vec<_> = ["/usr/local/bin/docker", "/usr/bin/docker"]
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .collect();
    assert!(!found.is_empty(), "the docker CLI is not installed: cargo xtask test installs it");
    found
}

impl Daemon {
    /// Runs `docker` (the first of [`programs`]) with the words of `line`; a word in single quotes is one.
    pub async fn docker(&self, line: &str) -> Output {
        self.docker_by(programs()[0], line, b"").await
    }

    /// The same with bytes on standard input.
    pub async fn docker_with_input(&self, line: &str, input: &[u8]) -> Output {
        self.docker_by(programs()[0], line, input).await
    }

    /// The same with the program at `program`.
    pub async fn docker_by(&self, program: &str, line: &str, input: &[u8]) -> Output {
        let mut child = self.started(program, line);
        let mut stdin = child.stdin.take().expect("piped");
        // A program that reads nothing closes its end.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        let output = child.wait_with_output().await.expect("docker ends");
        Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// The program with its streams, for one that does not end by itself: it goes with its handle.
    pub fn started(&self, program: &str, line: &str) -> Child {
        Command::new(program)
            .args(words(line))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("DOCKER_CONFIG", self.dir.path().join("config"))
            .env("DOCKER_CLI_HINTS", "false")
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("docker runs")
    }

    /// What `docker <line>` prints, masked; it must succeed and warn of nothing.
    pub async fn prints(&self, line: &str) -> String {
        let output = self.docker(line).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "docker {line}: {}", output.stdout);
        mask(&output.stdout)
    }

    /// What `docker <line>` complains of; it must fail.
    pub async fn refuses(&self, line: &str) -> String {
        let output = self.docker(line).await;
        assert_ne!(output.code, 0, "docker {line}: {output:?}");
        mask(output.stderr.trim_end())
    }
}

fn words(line: &str) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), line.trim_start());
    while !rest.is_empty() {
        let (word, tail) = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').expect("a closing quote"),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = tail.trim_start();
    }
    words
}

/// `text` without what differs from run to run: ids, times, and the width of columns that hold them.
pub fn mask(text: &str) -> String {
    text.lines().map(mask_line).collect::<Vec<_>>().join("\n")
}

fn mask_line(line: &str) -> String {
    let mut out = String::new();
    // Columns are at least two blanks apart, or three; how many more depends on ids and times.
    let mut fields = line.split("  ").map(str::trim_end).filter(|field| !field.trim().is_empty());
    let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
    if let Some(first) = fields.next() {
        out.push_str(&indent);
        out.push_str(&mask_field(first.trim_start()));
    }
    for field in fields {
        out.push_str("  ");
        out.push_str(&mask_field(field.trim()));
    }
    out
}

fn mask_field(field: &str) -> String {
    let tokens = field.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let masked: String = tokens
        .map(|token| {
            let word = token.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            if is_id(word) { token.replacen(word, "<id>", 1) } else { token.to_owned() }
        })
        .collect();
    mask_age(&masked)
}

/// What the daemon and the CLI say that is as long as a short id. One id in fifty has no digit either.
const WORDS: [&str; 17] = [
    "acknowledged",
    "alphanumeric",
    "alternatives",
    "architecture",
    "availability",
    "certificates",
    "disconnected",
    "distribution",
    "enumerations",
    "inaccessible",
    "instructions",
    "modification",
    "reachability",
    "reinitialize",
    "requirements",
    "reservations",
    "unrecognized",
];

/// Twelve, twenty-five or sixty-four digits and lower-case letters that are no word and not one letter repeated (a
/// made-up secret).
fn is_id(word: &str) -> bool {
    matches!(word.len(), 12 | 25 | 64)
        && (word.contains(|c: char| c.is_ascii_digit())
            || word.bytes().any(|b| !word.starts_with(char::from(b))))
        && word.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        && !WORDS.contains(&word)
}

/// `Running 2 seconds ago` → `Running <age> ago`.
fn mask_age(field: &str) -> String {
    let Some(start) = field.strip_suffix(" ago") else { return field.to_owned() };
    match start.split_once(' ') {
        Some((state, _)) => format!("{state} <age> ago"),
        None => field.to_owned(),
    }
}
