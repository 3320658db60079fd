//! The applications of the stacks that the cluster tests deploy: small servers in the places of those in well-known
//! compose files, with their ports and variables. Redis and PostgreSQL beside them are the real ones; of MySQL there is
//! as much as a password, and a number on a volume.

mod agent;
mod html;
mod mysql;
mod redis;
mod result;
mod server;
mod visits;
mod visualizer;
mod vote;
mod votes;
mod wordpress;
mod worker;

use std::process::ExitCode;

const USAGE: &str = "\
apps: the applications of the tests' stacks

  apps vote          two buttons; votes go to redis:6379
  apps worker        takes votes from redis:6379 to db:5432
  apps result        how the votes in db:5432 stand
  apps visualizer    which tasks run on which node, from /var/run/docker.sock
  apps wordpress     a page with a number from its database
  apps mysql         that database: a login and a number
  apps visits        a page that is a config, with a number from Redis
  apps agent         which node this is
  apps healthcheck   0 if the server in this container answers well
";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let result = match command.as_str() {
        "vote" => vote::serve().await,
        "worker" => worker::work().await,
        "result" => result::serve().await,
        "visualizer" => visualizer::serve().await,
        "wordpress" => wordpress::serve().await,
        "mysql" => mysql::serve().await,
        "visits" => visits::serve().await,
        "agent" => agent::serve().await,
        "healthcheck" => server::check_health().await,
        _ => {
            eprint!("{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("apps {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A variable of the environment, or what stands for it.
fn variable(name: &str, default: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}
