//! In MySQL's place: who gives the right name, password and database on a line gets a number, which is one more each time
//! and is kept in MySQL's directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{server, variable};

const PORT: u16 = 3306;
/// Longest line that is read.
const LINE_LEN_MAX: u64 = 4096;
/// Longest time for it to come, and for its answer to be taken.
const TALK_LIMIT: Duration = Duration::from_secs(3);

/// Who may have what, as the variables of MySQL's image say.
struct Access {
    root_password: String,
    user: String,
    password: String,
    database: String,
}

/// Until SIGTERM.
pub async fn serve() -> Result<()> {
    let access = Access {
        root_password: variable("MYSQL_ROOT_PASSWORD", ""),
        user: variable("MYSQL_USER", ""),
        password: variable("MYSQL_PASSWORD", ""),
        database: variable("MYSQL_DATABASE", ""),
    };
    ensure!(!access.root_password.is_empty(), "MYSQL_ROOT_PASSWORD has to be set");
    let counter = PathBuf::from(variable("DATA_DIR", "/var/lib/mysql")).join("visits");
    let listener = server::listen(PORT).await?;
    println!("ready for connections on port {PORT}");
    let end = server::terminated()?;
    tokio::pin!(end);
    loop {
        let stream = tokio::select! {
            () = &mut end => return Ok(()),
            accepted = listener.accept() => accepted?.0,
        };
        // One after the other: a number is given once.
        match timeout(TALK_LIMIT, answer(stream, &access, &counter)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("{error:#}"),
            Err(_) => eprintln!("a client keeps silent"),
        }
    }
}

async fn answer(stream: TcpStream, access: &Access, counter: &Path) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(LINE_LEN_MAX).read_line(&mut line).await?;
    let words: Vec<&str> = line.trim_end_matches('\n').split('\t').collect();
    let said = match access.check(&words) {
        Ok(()) => format!("visit {}\n", count(counter)?),
        Err(error) => format!("{error:#}\n"),
    };
    Ok(stream.write_all(said.as_bytes()).await?)
}

impl Access {
    fn check(&self, words: &[&str]) -> Result<()> {
        let [user, password, database] = words else { bail!("no name, password and database") };
        let is_root = *user == "root" && *password == self.root_password;
        let is_user = !user.is_empty() && *user == self.user && *password == self.password;
        ensure!(is_root || is_user, "Access denied for user '{user}'");
        ensure!(*database == self.database, "Unknown database '{database}'");
        Ok(())
    }
}

/// One more than last time, on disk.
fn count(file: &Path) -> Result<u64> {
    let last = match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().context("the file has no number")?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    std::fs::write(file, format!("{}\n", last + 1))?;
    Ok(last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_passwords_and_databases_are_checked() {
        let text = str::to_owned;
        let access = Access {
            root_password: text("r"),
            user: text("wp"),
            password: text("p"),
            database: text("blog"),
        };
        let denied = |words: &[&str]| access.check(words).err().map(|error| error.to_string());
        assert_eq!(denied(&["wp", "p", "blog"]), None);
        assert_eq!(denied(&["root", "r", "blog"]), None);
        assert_eq!(denied(&["wp", "r", "blog"]).as_deref(), Some("Access denied for user 'wp'"));
        assert_eq!(denied(&["", "", "blog"]).as_deref(), Some("Access denied for user ''"));
        assert_eq!(denied(&["wp", "p", "shop"]).as_deref(), Some("Unknown database 'shop'"));
        assert!(denied(&["wp"]).is_some());
    }
}
