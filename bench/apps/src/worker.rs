//! The voting app's worker: takes votes from Redis and puts them into the database, one by one.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::time::sleep;

use crate::redis::{Redis, Reply};
use crate::{server, votes};

/// Between two looks whether Redis and the database are there (again).
const PAUSE: Duration = Duration::from_millis(500);

/// Until SIGTERM.
pub async fn work() -> Result<()> {
    let end = server::terminated()?;
    tokio::select! {
        () = end => Ok(()),
        () = take_votes() => Ok(()),
    }
}

async fn take_votes() {
    // Taken from Redis and not in the database yet.
    let mut open = None;
    loop {
        if let Err(error) = carry(&mut open).await {
            eprintln!("{error:#}");
        }
        sleep(PAUSE).await;
    }
}

/// Carries votes until one of the two is gone.
async fn carry(open: &mut Option<Vote>) -> Result<()> {
    let database = votes::connect().await?;
    votes::make_table(&database).await?;
    let mut redis = Redis::connect("redis:6379", None).await?;
    println!("Redis and the database are there");
    loop {
        if let Some(Vote { voter, choice }) = open {
            votes::put(&database, voter, choice).await?;
            *open = None;
        }
        *open = Some(next(&mut redis).await?);
    }
}

async fn next(redis: &mut Redis) -> Result<Vote> {
    match redis.command(&["BLPOP", "votes", "0"]).await? {
        Reply::List(items) => match items.as_slice() {
            [_, Reply::Text(text)] => Vote::parse(text),
            _ => bail!("Redis gives {items:?} for a vote"),
        },
        other => bail!("Redis gives {other:?} for a vote"),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Vote {
    voter: String,
    choice: String,
}

impl Vote {
    fn parse(text: &str) -> Result<Self> {
        let vote: Value = serde_json::from_str(text)?;
        let field =
            |name: &str| vote[name].as_str().map(str::to_owned).with_context(|| format!("no {name}: {text}"));
        Ok(Self { voter: field("voter_id")?, choice: field("vote")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_names_its_voter() {
        let vote = Vote::parse(r#"{"vote": "a", "voter_id": "42"}"#).unwrap();
        assert_eq!(vote, Vote { voter: "42".into(), choice: "a".into() });
        assert!(Vote::parse(r#"{"vote": "a"}"#).is_err());
    }
}
