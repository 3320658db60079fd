//! The voting app's front: two buttons; a vote goes to the list `votes` in Redis, with who gave it.

use std::net::SocketAddr;

use anyhow::Result;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::json;

use crate::html::fill;
use crate::redis::Redis;
use crate::server::{self, host_name, page};
use crate::variable;

const PAGE: &str = include_str!("../pages/vote.html");
const VOTER: &str = "voter_id";

pub async fn serve() -> Result<()> {
    server::serve(Router::new().route("/", get(show).post(take))).await
}

async fn show(ConnectInfo(client): ConnectInfo<SocketAddr>, headers: HeaderMap) -> Response {
    with_voter(&voter(&headers), page(Ok(buttons(client, ""))))
}

/// The form's `vote=a` or `vote=b`.
async fn take(ConnectInfo(client): ConnectInfo<SocketAddr>, headers: HeaderMap, form: String) -> Response {
    let Some(vote @ ("a" | "b")) = form.strip_prefix("vote=") else {
        return (StatusCode::BAD_REQUEST, "a vote is a or b\n").into_response();
    };
    let voter = voter(&headers);
    let taken = push(&voter, vote).await.map(|()| buttons(client, vote));
    with_voter(&voter, page(taken))
}

async fn push(voter: &str, vote: &str) -> Result<()> {
    let mut redis = Redis::connect("redis:6379", None).await?;
    let text = json!({ "voter_id": voter, "vote": vote }).to_string();
    redis.command(&["RPUSH", "votes", &text]).await?;
    Ok(())
}

fn buttons(client: SocketAddr, vote: &str) -> String {
    let (a, b) = (variable("OPTION_A", "Cats"), variable("OPTION_B", "Dogs"));
    let (host, client) = (host_name(), client.ip().to_canonical().to_string());
    let mark = |option| if vote == option { "✓" } else { "" };
    let values = [("a", a.as_str()), ("b", &b), ("host", &host), ("client", &client)];
    fill(PAGE, &[&values[..], &[("mark_a", mark("a")), ("mark_b", mark("b"))]].concat())
}

/// Who has been here before brings a number, who has not gets one.
fn voter(headers: &HeaderMap) -> String {
    let cookies = headers.get(COOKIE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let known = cookies.split(';').filter_map(|cookie| cookie.trim().split_once('='));
    let known = known.filter(|(name, _)| *name == VOTER).map(|(_, number)| number.to_owned()).next();
    known.unwrap_or_else(|| format!("{:016x}", rand::random::<u64>()))
}

fn with_voter(voter: &str, page: Response) -> Response {
    ([(SET_COOKIE, format!("{VOTER}={voter}; SameSite=Lax"))], page).into_response()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_voter_is_known_again() {
        let mut headers = HeaderMap::new();
        assert_ne!(voter(&headers), voter(&headers));
        headers.insert(COOKIE, HeaderValue::from_static("x=1; voter_id=42"));
        assert_eq!(voter(&headers), "42");
    }
}
