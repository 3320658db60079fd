//! Runs `skopeo`: everything that speaks with registries or reads image archives.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnetwork::IpNetwork;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::content::WorkLayout;
use super::error::{ImageError, PullError};
use super::reference::Reference;
use crate::files::unique_suffix;
use control_model::spec::RegistryCredentials;

/// A registry that does not answer its manifest within this is not there.
const INSPECT_TIMEOUT: &str = "30s";
/// Bound of one image's transfer: an hour is a large image on a slow line.
const COPY_TIMEOUT: &str = "1h";

/// The tool and its settings.
#[derive(Debug, Clone)]
pub(super) struct Skopeo {
    /// Registries (`host:port`, or networks as `10.0.0.0/8`) that may be spoken to without TLS, or with a certificate that nobody vouches for.
    pub insecure_registries: BTreeSet<String>,
    /// For files that live as long as one run.
    pub scratch: PathBuf,
}

impl Skopeo {
    /// The manifest (or manifest list) that the registry has for a reference, byte for byte.
    pub async fn raw_manifest(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
    ) -> Result<Vec<u8>, ImageError> {
        self.inspect(reference, auth, &["--raw"]).await
    }

    /// The configuration that it has for an image, byte for byte: what a copy converts is still in it.
    pub async fn raw_configuration(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
    ) -> Result<Vec<u8>, ImageError> {
        self.inspect(reference, auth, &["--config", "--raw"]).await
    }

    async fn inspect(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
        what: &[&str],
    ) -> Result<Vec<u8>, ImageError> {
        let auth_file = self.auth_file(reference, auth)?;
        let mut command = skopeo(INSPECT_TIMEOUT);
        command.arg("inspect").args(what);
        if self.is_insecure(reference.domain()) {
            command.arg("--tls-verify=false");
        }
        auth_file.add_to(&mut command);
        command.arg(format!("docker://{}", registry_name(reference)));
        let output = command.output().await.map_err(ImageError::io("skopeo"))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(pull_error(reference, &String::from_utf8_lossy(&output.stderr)).into())
    }

    /// The same of an image of an archive file.
    pub async fn raw_configuration_of_archive(&self, source: &str) -> Result<Vec<u8>, ImageError> {
        let mut command = skopeo(INSPECT_TIMEOUT);
        command.args(["inspect", "--config", "--raw", source]);
        let output = command.output().await.map_err(ImageError::io("skopeo"))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(ImageError::BadArchive(message_of(&String::from_utf8_lossy(&output.stderr))))
    }

    /// Copies an image from its registry into `layout`; `progress` gets skopeo's lines.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
        layout: &WorkLayout,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<(), ImageError> {
        let auth_file = self.auth_file(reference, auth)?;
        let mut command = skopeo(COPY_TIMEOUT);
        command.arg("copy");
        if self.is_insecure(reference.domain()) {
            command.arg("--src-tls-verify=false");
        }
        auth_file.add_to(&mut command);
        command.arg(format!("docker://{}", registry_name(reference)));
        command.arg(format!("oci:{}", layout.image_name()));
        run_with_lines(command, progress).await.map_err(|stderr| pull_error(reference, &stderr).into())
    }

    /// Copies one image of an archive file into `layout`. `source` is skopeo's name of it.
    pub async fn copy_archive(&self, source: &str, layout: &WorkLayout) -> Result<(), ImageError> {
        let mut command = skopeo(COPY_TIMEOUT);
        command.args(["copy", "--quiet", source]).arg(format!("oci:{}", layout.image_name()));
        run_with_lines(command, &|_| {}).await.map_err(|stderr| ImageError::BadArchive(message_of(&stderr)))
    }

    /// Writes an archive as Docker's, with these names.
    pub async fn save(&self, layout: &WorkLayout, to: &Path, names: &[Reference]) -> Result<(), ImageError> {
        let mut command = skopeo(COPY_TIMEOUT);
        command.args(["copy", "--quiet"]);
        for name in names.iter().skip(1) {
            command.arg("--additional-tag").arg(name.to_string());
        }
        let first = names.first().map(|name| format!(":{name}")).unwrap_or_default();
        command.arg(format!("oci:{}", layout.image_name()));
        command.arg(format!("docker-archive:{}{first}", to.display()));
        run_with_lines(command, &|_| {}).await.map_err(|stderr| ImageError::Tool {
            program: "skopeo",
            verb: "copy".into(),
            output: message_of(&stderr),
        })
    }

    /// Copies the image of `layout` to its registry; `progress` gets skopeo's lines. Gives its digest there: layers that are
    /// not compressed here are on the way, and the manifest is another.
    pub async fn push(
        &self,
        layout: &WorkLayout,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<String, ImageError> {
        let auth_file = self.auth_file(reference, auth)?;
        let digest_file = ScratchFile(self.scratch.join(unique_suffix()));
        let mut command = skopeo(COPY_TIMEOUT);
        command.arg("copy").arg("--digestfile").arg(&digest_file.0);
        if self.is_insecure(reference.domain()) {
            command.arg("--dest-tls-verify=false");
        }
        auth_file.add_to(&mut command);
        command.arg(format!("oci:{}", layout.image_name()));
        command.arg(format!("docker://{reference}"));
        run_with_lines(command, progress).await.map_err(|stderr| {
            let message = message_of(&stderr);
            let is_denied = ["unauthorized", "denied", "authentication required"]
                .iter()
                .any(|word| message.contains(word));
            let denied = "denied: requested access to the resource is denied";
            ImageError::Push(if is_denied { denied.to_owned() } else { message })
        })?;
        let digest = std::fs::read_to_string(&digest_file.0).map_err(ImageError::io(&digest_file.0))?;
        Ok(digest.trim().to_owned())
    }

    /// Asks the registry whether it knows who this is.
    pub async fn login(&self, registry: &str, auth: &RegistryCredentials) -> Result<(), ImageError> {
        let auth_file = AuthFile(Some(ScratchFile(self.scratch.join(unique_suffix()))));
        let mut command = skopeo(INSPECT_TIMEOUT);
        command.args(["login", "--username", &auth.username, "--password-stdin"]);
        if self.is_insecure(registry) {
            command.arg("--tls-verify=false");
        }
        auth_file.add_to(&mut command);
        command.arg("--").arg(registry).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let failed = |reason: String| ImageError::Login { registry: registry.to_owned(), reason };
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let mut stdin = child.stdin.take().expect("it is piped");
        // One that has ended says why on its standard error.
        let _ = stdin.write_all(auth.password.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(message_of(&String::from_utf8_lossy(&output.stderr))))
    }

    /// As Docker decides: listed by name or by network, or on this very host.
    fn is_insecure(&self, domain: &str) -> bool {
        if self.insecure_registries.contains(domain) {
            return true;
        }
        let host = domain.rsplit_once(':').map_or(domain, |(host, _)| host);
        let Ok(address) = host.parse::<IpAddr>() else { return host == "localhost" };
        let networks = self.insecure_registries.iter().filter_map(|listed| listed.parse::<IpNetwork>().ok());
        address.is_loopback() || networks.into_iter().any(|network| network.contains(address))
    }

    fn auth_file(
        &self,
        reference: &Reference,
        auth: Option<&RegistryCredentials>,
    ) -> Result<AuthFile, ImageError> {
        let Some(auth) = auth else { return Ok(AuthFile(None)) };
        let path = self.scratch.join(unique_suffix());
        let body = serde_json::json!({ "auths": { reference.domain(): entry(auth) } });
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(&path).map_err(ImageError::io(&path))?;
        let auth_file = AuthFile(Some(ScratchFile(path.clone())));
        file.write_all(body.to_string().as_bytes()).map_err(ImageError::io(&path))?;
        Ok(auth_file)
    }
}

/// As `containers-auth.json(5)` has it.
fn entry(auth: &RegistryCredentials) -> serde_json::Value {
    let RegistryCredentials { username, password, identity_token } = auth;
    let mut entry = serde_json::json!({ "auth": STANDARD.encode(format!("{username}:{password}")) });
    if !identity_token.is_empty() {
        entry["identitytoken"] = identity_token.as_str().into();
    }
    entry
}

/// Credentials on disk for one run: not in the arguments, where every process could read them.
struct AuthFile(Option<ScratchFile>);

impl AuthFile {
    fn add_to(&self, command: &mut Command) {
        if let Some(file) = &self.0 {
            command.arg("--authfile").arg(&file.0);
        }
    }
}

/// A file that lives as long as one run.
struct ScratchFile(PathBuf);

impl Drop for ScratchFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn skopeo(timeout: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "--override-os", "linux", "--command-timeout", timeout]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What skopeo wants behind `docker://`: it refuses a tag beside a digest.
fn registry_name(reference: &Reference) -> String {
    reference.digest().map_or_else(|| reference.to_string(), |digest| reference.at_digest(digest))
}

/// Runs to the end; lines of standard output go to `progress`, standard error is the error.
async fn run_with_lines(mut command: Command, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<(), String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("skopeo: {error}"))?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let lines = async {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            progress(&line);
        }
    };
    let ((), output) = tokio::join!(lines, child.wait_with_output());
    let output = output.map_err(|error| format!("skopeo: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn pull_error(reference: &Reference, stderr: &str) -> PullError {
    let name = reference.familiar();
    if stderr.contains("manifest unknown") || stderr.contains("name unknown") {
        PullError::ManifestUnknown(name)
    } else if stderr.contains("unauthorized")
        || stderr.contains("denied")
        || stderr.contains("authentication required")
    {
        PullError::Denied(reference.familiar_repository())
    } else {
        PullError::Registry { reference: name, reason: message_of(stderr) }
    }
}

/// The text of skopeo's last log line (`time="…" level=fatal msg="…"`).
fn message_of(stderr: &str) -> String {
    let line = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
    match line.split_once("msg=\"") {
        Some((_, message)) => message.trim_end_matches('"').replace("\\\"", "\""),
        None => line.to_owned(),
    }
}

/// The images of an archive file as skopeo names them, each with the names that it brings.
pub(super) fn archive_source(kind: &str, file: &Path, image: &str) -> String {
    format!("{kind}:{}:{image}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_and_local_registries_are_insecure() {
        let listed = ["reg.example:5000", "10.1.0.0/16"].map(str::to_owned);
        let skopeo = Skopeo { insecure_registries: listed.into(), scratch: PathBuf::new() };
        let insecure = |name: &str| skopeo.is_insecure(Reference::parse(name).expect("valid").domain());
        for name in ["reg.example:5000/x", "10.1.2.3:5000/x", "127.0.0.1:5000/x", "localhost:5000/x"] {
            assert!(insecure(name), "{name}");
        }
        for name in ["nginx", "reg.example/x", "10.2.0.1:5000/x"] {
            assert!(!insecure(name), "{name}");
        }
    }

    #[test]
    fn skopeos_words_become_dockers() {
        let reference = Reference::parse("127.0.0.1:5000/x:1").expect("valid");
        let unknown =
            r#"time="x" level=fatal msg="reading manifest 1 in 127.0.0.1:5000/x: manifest unknown""#;
        assert_eq!(
            pull_error(&reference, unknown).to_string(),
            "manifest for 127.0.0.1:5000/x:1 not found: manifest unknown: manifest unknown"
        );
        let refused = r#"time="x" level=fatal msg="pinging \"x\": connection refused""#;
        assert_eq!(
            pull_error(&reference, refused).to_string(),
            r#"pull of 127.0.0.1:5000/x:1: pinging "x": connection refused"#
        );
    }
}
