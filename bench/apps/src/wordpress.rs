//! In WordPress' place: a page with a number from its database, which it reaches as its variables say.

use anyhow::{Context as _, Result};
use axum::Router;
use axum::response::Response;
use axum::routing::get;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::html::fill;
use crate::server::{self, page};
use crate::variable;

const PAGE: &str = include_str!("../pages/wordpress.html");

pub async fn serve() -> Result<()> {
    server::serve(Router::new().route("/", get(show))).await
}

async fn show() -> Response {
    page(visit().await.context("Error establishing a database connection"))
}

async fn visit() -> Result<String> {
    let host = variable("WORDPRESS_DB_HOST", "mysql:3306");
    let user = variable("WORDPRESS_DB_USER", "root");
    let password = variable("WORDPRESS_DB_PASSWORD", "");
    let database = variable("WORDPRESS_DB_NAME", "wordpress");
    let mut stream = BufReader::new(TcpStream::connect(&host).await?);
    stream.write_all(format!("{user}\t{password}\t{database}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    let number = answer.trim_end().strip_prefix("visit ").with_context(|| answer.trim_end().to_owned())?;
    let values = [("host", host.as_str()), ("user", &user), ("database", &database), ("visits", number)];
    Ok(fill(PAGE, &values))
}
