//! Backups of a cluster: taken from a running manager, sealed by it, and made a cluster of again.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use control_client::Client;
use serde_json::json;

use crate::base64::base64;

/// Sealing and writing a gigabyte, and a new cluster's first election.
const TIMEOUT: Duration = Duration::from_mins(5);
/// Readable by its owner alone.
const MODE: u32 = 0o600;

/// What a backup is sealed with.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SecretArguments {
    /// File whose first line is the passphrase; - is standard input
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// File of at least 32 random bytes: head -c 32 /dev/urandom > FILE
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct BackupArguments {
    /// File to write; it must not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    secret: SecretArguments,
    /// Without a leader too: what this manager has, which may be old
    #[arg(long)]
    stale: bool,
}

#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    secret: SecretArguments,
    /// As of docker swarm init
    #[arg(long, value_name = "ADDRESS|INTERFACE[:PORT]", default_value = "")]
    advertise_addr: String,
    /// As of docker swarm init
    #[arg(long, value_name = "ADDRESS|INTERFACE[:PORT]", default_value = "")]
    listen_addr: String,
    /// As of docker swarm init
    #[arg(long, value_name = "ADDRESS|INTERFACE", default_value = "")]
    data_path_addr: String,
}

/// Has the manager seal its state, and writes that to a file that nobody else can read.
pub async fn take(socket: &Path, arguments: &BackupArguments) -> anyhow::Result<String> {
    let BackupArguments { file, secret, stale } = arguments;
    ensure!(!file.exists(), "{} is there already", file.display());
    let client = Client::new(socket).with_timeout(TIMEOUT);
    let path = if *stale { "/mesh/backup?stale=1" } else { "/mesh/backup" };
    let body = secret.read()?.to_string();
    let sealed = client.post_bytes(path, "application/json", body.into()).await?;
    write(file, &sealed).with_context(|| format!("can't write {}", file.display()))?;
    Ok(format!("{} bytes in {}\n", sealed.len(), file.display()))
}

/// Has the daemon, which is in no swarm, make a cluster of the backup.
pub async fn restore(socket: &Path, arguments: &RestoreArguments) -> anyhow::Result<String> {
    let RestoreArguments { file, secret, advertise_addr, listen_addr, data_path_addr } = arguments;
    let sealed = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
    let mut head = secret.read()?;
    head["AdvertiseAddr"] = json!(advertise_addr);
    head["ListenAddr"] = json!(listen_addr);
    head["DataPathAddr"] = json!(data_path_addr);
    let body = [head.to_string().as_bytes(), b"\n", &sealed].concat();
    let client = Client::new(socket).with_timeout(TIMEOUT);
    let node = client.post_bytes("/mesh/restore", "application/octet-stream", body.into()).await?;
    let node: String = serde_json::from_slice(&node).context("the daemon's answer")?;
    Ok(format!(
        "The cluster is restored; this node ({node}) is its only manager. Other nodes join with the tokens of before.\n\
         Managers of the old cluster that still run are called, and become its workers.\n"
    ))
}

impl SecretArguments {
    /// As the daemon wants it.
    fn read(&self) -> anyhow::Result<serde_json::Value> {
        if let Some(path) = &self.passphrase_file {
            let text = if path == Path::new("-") {
                std::io::read_to_string(std::io::stdin()).context("can't read standard input")?
            } else {
                fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?
            };
            let words = text.lines().next().unwrap_or_default();
            ensure!(!words.is_empty(), "the first line of the passphrase's file is empty");
            return Ok(json!({ "Passphrase": words }));
        }
        let path = self.key_file.as_ref().context("no --passphrase-file and no --key-file")?;
        let key = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        ensure!(!key.is_empty(), "{} is empty", path.display());
        Ok(json!({ "Key": base64(&key) }))
    }
}

/// A new file, on disk when this returns; what fails leaves none.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(MODE).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        fs::remove_file(path)?;
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_its_owners_alone_and_overwrites_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("backup");
        write(&path, b"sealed").expect("written");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, MODE);
        assert!(write(&path, b"other").is_err());
        assert_eq!(fs::read(&path).expect("readable"), b"sealed");
    }
}
