//! The commands of the mission's checklist, typed one after the other (`commands.txt`) on a small cluster of their own.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use bench_lab::wait_until;

use crate::support::{Bench, Outcome, SETTLE};

const SCRIPT: &str = include_str!("commands.txt");
const STACK: &str = r#"version: "3.8"
services:
  web: { image: nginx, ports: ["8080:80"], deploy: { replicas: 2 } }
  mysql: { image: mysql }
"#;

pub fn of_the_checklist(_: &mut Bench) -> Outcome {
    let bench = Bench::with("commands", (1, 2), &[], false)?;
    let dir = tempfile::tempdir()?;
    let outcome = typed(&bench, dir.path());
    if outcome.is_err() {
        bench.print_diagnosis();
    }
    bench.down()?;
    outcome
}

fn typed(bench: &Bench, dir: &Path) -> Outcome {
    std::fs::write(dir.join("file"), "content")?;
    std::fs::write(dir.join("stack.yml"), STACK)?;
    bench.docker(&["service", "rm", "whoami"])?;
    for node in bench.lab.nodes() {
        for image in ["alpine", "nginx", "redis", "mysql", "mysql:5.6", "dns-cache"] {
            bench.import_with(&node.name, image, &[r#"ENTRYPOINT ["/whoami", "any"]"#])?;
        }
    }
    let mut values = BTreeMap::from([("dir".to_owned(), dir.to_string_lossy().into_owned())]);
    for node in bench.lab.nodes() {
        let short = node.name.rsplit('-').next().unwrap_or(&node.name);
        values.insert(short.to_owned(), node.address.to_string());
    }
    let (mut n_commands, mut wrong) = (0, Vec::new());
    let mut typist = Typist { bench, values, output: Vec::new(), last: Default::default() };
    for (number, line) in SCRIPT.lines().enumerate() {
        match typist.take(line) {
            Ok(is_command) => n_commands += usize::from(is_command),
            Err(error) => wrong.push(format!("commands.txt:{}: {line}\n    {error:#}", number + 1)),
        }
    }
    println!("  {n_commands} commands");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

struct Typist<'b> {
    bench: &'b Bench,
    values: BTreeMap<String, String>,
    /// Lines of the last command that are still to be matched.
    output: Vec<String>,
    /// Where that was typed, and its words.
    last: (String, Vec<String>),
}

impl Typist<'_> {
    /// Does what a line says; is it a command?
    fn take(&mut self, line: &str) -> Result<bool> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(false);
        }
        let line = self.filled(line);
        if let Some(pattern) = line.strip_prefix("| ") {
            let at = self.output.iter().position(|shown| fits(pattern, shown));
            let at = at.with_context(|| format!("it is not among {:#?}", self.output))?;
            self.output.drain(..=at);
            return Ok(false);
        }
        if let Some(pattern) = line.strip_prefix("~ ") {
            let waited = wait_until(pattern, SETTLE, || {
                self.output = shown(&self.bench.lab.try_docker(&self.last.0, &refs(&self.last.1))?.text());
                Ok(self.output.iter().any(|shown| fits(pattern, shown)).then_some(()))
            });
            return waited.map(|_| false).with_context(|| format!("{:#?}", self.output));
        }
        if let Some(name) = line.strip_prefix("= ") {
            let value = self.output.first().cloned().context("it printed nothing")?;
            self.values.insert(name.to_owned(), value);
            return Ok(false);
        }
        if let Some(rest) = line.strip_prefix("wait ") {
            let (service, count) = rest.split_once(' ').context("wait SERVICE N")?;
            self.wait(service, count.parse()?)?;
            return Ok(false);
        }
        let (node, rest) = line.split_once(' ').context("NODE $ words")?;
        let (sign, rest) = rest.split_once(' ').context("NODE $ words")?;
        self.last = (node.to_owned(), words(rest));
        let ran = self.bench.lab.try_docker(node, &refs(&self.last.1))?;
        ensure!(ran.success() == (sign == "$"), "it says {}", ran.text());
        self.output = shown(&ran.text());
        Ok(true)
    }

    fn filled(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for (name, value) in &self.values {
            line = line.replace(&format!("{{{name}}}"), value);
        }
        line
    }

    /// As many tasks of the service run, and no update is under way.
    fn wait(&self, service: &str, n: usize) -> Outcome {
        let mut seen = String::new();
        let waited = wait_until(&format!("{n} tasks of {service}"), SETTLE, || {
            let format = "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}";
            seen = self.bench.docker(&["service", "inspect", "--format", format, service])?;
            let is_still = !["updating", "rollback_started"].contains(&seen.trim());
            Ok((is_still && self.bench.running(service)?.len() == n).then_some(()))
        });
        if let Err(error) = waited {
            let tasks = self.bench.docker(&["service", "ps", "--no-trunc", service])?;
            bail!("{error:#}; {seen}\n{tasks}");
        }
        Ok(())
    }
}

fn refs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn shown(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// Split at spaces; what is in single quotes is one.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => all.push(std::mem::take(&mut word)),
            other => word.push(other),
        }
    }
    all.push(word);
    all.retain(|word| !word.is_empty());
    all
}

/// `*` stands for any text, `?` for one character; how many spaces there are is the terminal's business.
fn fits(pattern: &str, line: &str) -> bool {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let pattern = squeezed(pattern).replace(" *", "*").replace("* ", "*");
    fits_chars(&pattern.chars().collect::<Vec<_>>(), &squeezed(line).chars().collect::<Vec<_>>())
}

fn fits_chars(pattern: &[char], line: &[char]) -> bool {
    match (pattern, line) {
        ([], []) => true,
        (['*', rest @ ..], _) => (0..=line.len()).any(|n| fits_chars(rest, &line[n..])),
        (['?', rest @ ..], [_, line @ ..]) => fits_chars(rest, line),
        ([c, rest @ ..], [first, line @ ..]) => c == first && fits_chars(rest, line),
        _ => false,
    }
}
