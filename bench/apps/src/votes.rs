//! The table of votes: one row per voter.

use anyhow::{Context as _, Result};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use crate::variable;

/// A connection to the database of the stack, as its user.
pub async fn connect() -> Result<Client> {
    let mut config = Config::new();
    config.host(variable("POSTGRES_HOST", "db"));
    config.user(variable("POSTGRES_USER", "postgres"));
    config.password(variable("POSTGRES_PASSWORD", "postgres"));
    config.dbname("postgres");
    config.connect_timeout(std::time::Duration::from_secs(3));
    let (client, connection) = config.connect(NoTls).await.context("can't reach the database")?;
    // It ends when the client is dropped or the database is gone; the client's next command says why.
    tokio::spawn(connection);
    Ok(client)
}

/// Makes the table, unless it is there.
pub async fn make_table(client: &Client) -> Result<()> {
    let table =
        "CREATE TABLE IF NOT EXISTS votes (id VARCHAR(255) NOT NULL UNIQUE, vote VARCHAR(255) NOT NULL)";
    Ok(client.batch_execute(table).await?)
}

/// A voter's last vote is the one that counts.
pub async fn put(client: &Client, voter: &str, vote: &str) -> Result<()> {
    let insert = "INSERT INTO votes (id, vote) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET vote = $2";
    client.execute(insert, &[&voter, &vote]).await?;
    Ok(())
}

/// How many are for `a`, and for `b`.
pub async fn count(client: &Client) -> Result<(i64, i64)> {
    let counts = "SELECT count(*) FILTER (WHERE vote = 'a'), count(*) FILTER (WHERE vote = 'b') FROM votes";
    match client.query_one(counts, &[]).await {
        Ok(row) => Ok((row.try_get(0)?, row.try_get(1)?)),
        // Nobody has voted yet: the first vote makes the table.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok((0, 0)),
        Err(error) => Err(error.into()),
    }
}
