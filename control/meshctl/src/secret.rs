//! Rotation of a secret: a new one under the next name, and the services that use any of its versions go over to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use control_client::Client;
use serde_json::{Value, json};

use crate::base64::base64;

/// Label of every version but the first: the name that they are versions of.
const LABEL: &str = "mesh.secret";
/// How often a service is tried that somebody else changes meanwhile.
const MAX_ATTEMPTS: usize = 5;

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Make a new version (NAME.2, NAME.3, …) and roll the services that use any version over to it. File names in containers
    /// stay. On a manager
    Rotate(RotateArguments),
}

#[derive(Debug, Args)]
pub struct RotateArguments {
    /// The secret, by the name that it was made with
    #[arg(value_name = "NAME")]
    name: String,
    /// Its new content; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// A version of the secret: its number and its id.
type Versions = BTreeMap<u64, String>;

/// Rotates; gives what was done, a line each. Fails where a service did not go over, and says which.
pub async fn rotate(socket: &Path, arguments: &RotateArguments) -> anyhow::Result<String> {
    let RotateArguments { name, file } = arguments;
    let client = Client::new(socket);
    let secrets = client.get("/secrets").await?;
    let versions = versions_of(&secrets, name);
    let Some((newest, id)) = versions.last_key_value() else { bail!("secret {name} not found") };
    let made = format!("{name}.{}", newest + 1);
    let new = next_version(&secrets, id, (name, &made), &content(file)?);
    let id = client.post("/secrets/create", Some(&new)).await?;
    let id = id["ID"].as_str().context("the new secret has no id")?;
    let mut done = format!("{made} is made\n");
    let services = client.get("/services").await?;
    let mut n_failed = 0;
    for service in services.as_array().context("no list of services")? {
        if !uses(service, &versions) {
            continue;
        }
        let service = service["ID"].as_str().context("a service without an id")?;
        match go_over(&client, service, &versions, (id, &made)).await {
            Ok(name) => writeln!(done, "{name} rolls")?,
            Err(error) => {
                n_failed += 1;
                writeln!(done, "{service} stays: {error:#}")?;
            }
        }
    }
    ensure!(n_failed == 0, "{done}{n_failed} services stay with the version that they have");
    Ok(done)
}

/// Gives one service the new version; its name.
async fn go_over(
    client: &Client,
    id: &str,
    versions: &Versions,
    new: (&str, &str),
) -> anyhow::Result<String> {
    let mut refused = None;
    for _ in 0..MAX_ATTEMPTS {
        let service = client.get(&format!("/services/{id}")).await?;
        let mut spec = service["Spec"].clone();
        replace(&mut spec, versions, new);
        let version = &service["Version"]["Index"];
        match client.post(&format!("/services/{id}/update?version={version}"), Some(&spec)).await {
            Ok(_) => return Ok(spec["Name"].as_str().unwrap_or(id).to_owned()),
            Err(error) if error.to_string().contains("update out of sequence") => refused = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(refused.context("it was not tried")?.into())
}

fn content(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("can't read standard input")?;
        return Ok(bytes);
    }
    fs::read(file).with_context(|| format!("can't read {}", file.display()))
}

/// The first version has the name, the others a number behind it and the label.
fn versions_of(secrets: &Value, name: &str) -> Versions {
    let number = |spec: &Value| {
        let called = spec["Name"].as_str()?;
        if called == name {
            return Some(1);
        }
        let is_labelled = spec["Labels"][LABEL] == name;
        called.strip_prefix(name)?.strip_prefix('.')?.parse().ok().filter(|_| is_labelled)
    };
    let all = secrets.as_array().into_iter().flatten();
    all.filter_map(|secret| Some((number(&secret["Spec"])?, secret["ID"].as_str()?.to_owned()))).collect()
}

/// The spec of a new version, `made`, of the secret `name`: what its newest one has, with other bytes.
fn next_version(secrets: &Value, newest: &str, (name, made): (&str, &str), content: &[u8]) -> Value {
    let newest = secrets.as_array().into_iter().flatten().find(|secret| secret["ID"] == newest);
    let mut spec = newest.map_or_else(|| json!({}), |newest| newest["Spec"].clone());
    if !spec["Labels"].is_object() {
        spec["Labels"] = json!({});
    }
    spec["Labels"][LABEL] = name.into();
    spec["Name"] = made.into();
    spec["Data"] = base64(content).into();
    spec
}

fn uses(service: &Value, versions: &Versions) -> bool {
    let secrets = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"].as_array();
    secrets.into_iter().flatten().any(|secret| is_version(secret, versions))
}

fn is_version(reference: &Value, versions: &Versions) -> bool {
    reference["SecretID"].as_str().is_some_and(|id| versions.values().any(|version| version == id))
}

/// Every reference of `spec` to a version is one to the `new` (id, name).
fn replace(spec: &mut Value, versions: &Versions, (id, name): (&str, &str)) {
    let secrets = spec.pointer_mut("/TaskTemplate/ContainerSpec/Secrets").and_then(Value::as_array_mut);
    for reference in secrets.into_iter().flatten().filter(|one| is_version(one, versions)) {
        reference["SecretID"] = id.into();
        reference["SecretName"] = name.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(id: &str, name: &str, of: Option<&str>) -> Value {
        json!({"ID": id, "Spec": {"Name": name, "Labels": of.map(|of| json!({(LABEL): of}))}})
    }

    #[test]
    fn versions_are_told_from_other_names() {
        let all = json!([
            secret("a", "key", None),
            secret("b", "key.2", Some("key")),
            secret("c", "key.7", None),
            secret("d", "key.old", Some("key")),
            secret("e", "keys", None),
            secret("f", "key.10", Some("key")),
        ]);
        let numbers = versions_of(&all, "key");
        assert_eq!(numbers, BTreeMap::from([(1, "a".into()), (2, "b".into()), (10, "f".into())]));
        assert!(versions_of(&all, "other").is_empty());
    }

    #[test]
    fn a_version_is_what_the_one_before_was() {
        let before = json!({
            "ID": "a",
            "Spec": {"Name": "key", "Labels": {"com.docker.stack.namespace": "shop"}, "Templating": {"Name": "golang"}},
        });
        let next = next_version(&json!([secret("b", "other", None), before]), "a", ("key", "key.2"), b"new");
        let labels = json!({"com.docker.stack.namespace": "shop", (LABEL): "key"});
        let expected =
            json!({"Name": "key.2", "Labels": labels, "Templating": {"Name": "golang"}, "Data": "bmV3"});
        assert_eq!(next, expected);
        let plain = next_version(&json!([secret("a", "key", None)]), "a", ("key", "key.2"), b"new");
        assert_eq!(plain, json!({"Name": "key.2", "Labels": {(LABEL): "key"}, "Data": "bmV3"}));
    }

    #[test]
    fn references_go_over_and_keep_their_files() {
        let versions = BTreeMap::from([(1, "a".to_owned()), (2, "b".to_owned())]);
        let reference = |id: &str, name: &str, file: &str| json!({"SecretID": id, "SecretName": name, "File": {"Name": file}});
        let service =
            |secrets: Value| json!({"Spec": {"TaskTemplate": {"ContainerSpec": {"Secrets": secrets}}}});
        let mut old = service(json!([reference("a", "key", "pass"), reference("x", "other", "x")]));
        assert!(uses(&old, &versions));
        assert!(!uses(&service(json!([reference("x", "other", "x")])), &versions));
        assert!(!uses(&service(Value::Null), &versions));
        replace(&mut old["Spec"], &versions, ("c", "key.3"));
        assert_eq!(old, service(json!([reference("c", "key.3", "pass"), reference("x", "other", "x")])));
        let mut none = json!({"TaskTemplate": {}});
        replace(&mut none, &versions, ("c", "key.3"));
        assert_eq!(none, json!({"TaskTemplate": {}}));
    }
}
