//! A page that is a config, with a number that Redis counts; who wants to see more needs the password of a secret.

use std::fs::read_to_string;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::html::fill;
use crate::redis::{Redis, Reply};
use crate::server::{self, host_name, page};
use crate::variable;

pub async fn serve() -> Result<()> {
    server::serve(Router::new().route("/", get(show)).route("/admin", get(administer))).await
}

async fn show() -> Response {
    page(visit(&["INCR", "visits"]).await)
}

/// The same page, for those who have the password; a look is no visit.
async fn administer(headers: HeaderMap) -> Response {
    match may_administer(&headers) {
        Ok(true) => page(visit(&["INCRBY", "visits", "0"]).await),
        Ok(false) => {
            let ask = [(WWW_AUTHENTICATE, "Basic realm=\"visits\"")];
            (StatusCode::UNAUTHORIZED, ask, "who are you?\n").into_response()
        }
        Err(error) => page(Err(error)),
    }
}

async fn visit(command: &[&str]) -> Result<String> {
    let template = file("PAGE_FILE", "/srv/index.html")?;
    let password = file("REDIS_PASSWORD_FILE", "/run/secrets/redis_password")?;
    let address = variable("REDIS_ADDRESS", "redis:6379");
    let mut redis = Redis::connect(&address, Some(password.trim())).await?;
    let Reply::Number(visits) = redis.command(command).await? else { bail!("Redis gives no number") };
    Ok(fill(&template, &[("visits", &visits.to_string()), ("host", &host_name())]))
}

fn may_administer(headers: &HeaderMap) -> Result<bool> {
    let password = file("WEB_PASSWORD_FILE", "/run/secrets/web_password")?;
    let wanted = format!("Basic {}", STANDARD.encode(format!("admin:{}", password.trim())));
    Ok(headers.get(AUTHORIZATION).is_some_and(|given| given.as_bytes() == wanted.as_bytes()))
}

/// What is in the file that the variable names.
fn file(variable_name: &str, default: &str) -> Result<String> {
    let path = variable(variable_name, default);
    read_to_string(&path).with_context(|| format!("can't read {path}"))
}
