//! `--change` of `docker import`: Dockerfile instructions that set an image's run configuration.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use oci_spec::image::{Config, ConfigBuilder};

use super::error::ChangeError;
use super::health::parse_instruction;

/// The run configuration that a list of instructions makes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageChanges {
    cmd: Vec<String>,
    entrypoint: Vec<String>,
    env: Vec<String>,
    exposed_ports: BTreeSet<String>,
    volumes: BTreeSet<String>,
    labels: BTreeMap<String, String>,
    user: String,
    working_dir: String,
    stop_signal: String,
    health: Option<serde_json::Value>,
}

impl ImageChanges {
    /// Parses instructions, one per text, later ones over earlier ones.
    pub fn parse<'a>(instructions: impl IntoIterator<Item = &'a str>) -> Result<Self, ChangeError> {
        let mut changes = Self::default();
        for instruction in instructions {
            changes.apply(instruction.trim())?;
        }
        Ok(changes)
    }

    fn apply(&mut self, instruction: &str) -> Result<(), ChangeError> {
        let (word, rest) = instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""));
        let (word, rest) = (word.to_ascii_uppercase(), rest.trim());
        if rest.is_empty() {
            return Err(ChangeError::Arguments { instruction: word, needs: "at least one argument" });
        }
        match word.as_str() {
            "CMD" => self.cmd = command_line(rest),
            "ENTRYPOINT" => self.entrypoint = command_line(rest),
            "ENV" => {
                for (key, value) in pairs(rest, &word)? {
                    let prefix = format!("{key}=");
                    self.env.retain(|entry| !entry.starts_with(&prefix));
                    self.env.push(prefix + &value);
                }
            }
            "LABEL" => self.labels.extend(pairs(rest, &word)?),
            "EXPOSE" => self.exposed_ports.extend(words(rest).into_iter().map(with_protocol)),
            "VOLUME" => self.volumes.extend(list(rest)),
            "USER" => rest.clone_into(&mut self.user),
            "WORKDIR" => rest.clone_into(&mut self.working_dir),
            "STOPSIGNAL" => rest.clone_into(&mut self.stop_signal),
            "HEALTHCHECK" => self.health = Some(parse_instruction(rest)?),
            _ => return Err(ChangeError::NotAllowed(word.to_lowercase())),
        }
        Ok(())
    }

    /// Its HEALTHCHECK, which an OCI configuration has no field for.
    pub(super) fn health(&self) -> Option<serde_json::Value> {
        self.health.clone()
    }

    /// The configuration for an image's config blob; what was not set is absent.
    pub fn to_config(&self) -> Config {
        fn filled(text: &str) -> Option<String> {
            (!text.is_empty()).then(|| text.to_owned())
        }
        let mut config = ConfigBuilder::default().build().expect("all fields are optional");
        config
            .set_cmd((!self.cmd.is_empty()).then(|| self.cmd.clone()))
            .set_entrypoint((!self.entrypoint.is_empty()).then(|| self.entrypoint.clone()))
            .set_env((!self.env.is_empty()).then(|| self.env.clone()))
            .set_exposed_ports(
                (!self.exposed_ports.is_empty()).then(|| self.exposed_ports.iter().cloned().collect()),
            )
            .set_volumes((!self.volumes.is_empty()).then(|| self.volumes.iter().cloned().collect()))
            .set_labels(
                (!self.labels.is_empty()).then(|| self.labels.clone().into_iter().collect::<HashMap<_, _>>()),
            )
            .set_user(filled(&self.user))
            .set_working_dir(filled(&self.working_dir))
            .set_stop_signal(filled(&self.stop_signal));
        config
    }
}

/// A JSON list is taken as it is, anything else goes through a shell.
fn command_line(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| vec!["/bin/sh".into(), "-c".into(), text.to_owned()])
}

fn list(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|_| words(text))
}

fn with_protocol(port: String) -> String {
    if port.contains('/') { port } else { port + "/tcp" }
}

/// `k=v k2="v 2"`, or the old form `k the whole rest`.
fn pairs(text: &str, instruction: &str) -> Result<Vec<(String, String)>, ChangeError> {
    let parts = words(text);
    if !parts.first().is_some_and(|part| part.contains('=')) {
        let (key, value) = text.split_once(char::is_whitespace).ok_or_else(|| ChangeError::Arguments {
            instruction: instruction.to_owned(),
            needs: "key=value pairs",
        })?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    parts
        .into_iter()
        .map(|part| {
            part.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| {
                ChangeError::Arguments { instruction: instruction.to_owned(), needs: "key=value pairs" }
            })
        })
        .collect()
}

/// Splits at white space; quotes keep it, a backslash keeps the next character.
fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', quote) if quote != Some('\'') => word.get_or_insert_default().extend(chars.next()),
            (c, None) if c.is_whitespace() => found.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_become_a_config() {
        let changes = ImageChanges::parse([
            r#"ENTRYPOINT ["/whoami"]"#,
            "CMD serve --port 80",
            r#"ENV A=1 B="two words""#,
            "env A 3 4",
            "EXPOSE 80 53/udp",
            "LABEL x=y",
            "WORKDIR /tmp",
            "USER nobody",
        ])
        .expect("all are allowed");
        let config = changes.to_config();
        assert_eq!(config.entrypoint().as_deref(), Some(&["/whoami".to_owned()][..]));
        assert_eq!(config.cmd().as_ref().expect("set")[..2], ["/bin/sh", "-c"]);
        assert_eq!(config.env().as_ref().expect("set")[..], ["B=two words", "A=3 4"]);
        assert_eq!(config.exposed_ports().as_ref().expect("set")[..], ["53/udp", "80/tcp"]);
        assert_eq!(config.user().as_deref(), Some("nobody"));
        assert_eq!(config.stop_signal(), &None);
    }

    #[test]
    fn other_instructions_are_refused_in_dockers_words() {
        let error = ImageChanges::parse(["RUN true"]).expect_err("not allowed");
        assert_eq!(error.to_string(), "run is not a valid change command");
        assert!(ImageChanges::parse(["CMD"]).is_err());
        assert!(ImageChanges::parse(["ENV x"]).is_err());
    }
}
