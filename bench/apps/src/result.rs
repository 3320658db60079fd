//! The voting app's result: how the votes stand, in percent.

use std::net::SocketAddr;

use anyhow::Result;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::response::Response;
use axum::routing::get;

use crate::html::fill;
use crate::server::{self, host_name, page};
use crate::{variable, votes};

const PAGE: &str = include_str!("../pages/result.html");

pub async fn serve() -> Result<()> {
    server::serve(Router::new().route("/", get(show))).await
}

async fn show(ConnectInfo(client): ConnectInfo<SocketAddr>) -> Response {
    page(scores(client).await)
}

async fn scores(client: SocketAddr) -> Result<String> {
    let (n_a, n_b) = votes::count(&votes::connect().await?).await?;
    let (percent_a, percent_b) = shares(n_a, n_b);
    let total = match n_a + n_b {
        0 => "no votes yet".to_owned(),
        1 => "1 vote".to_owned(),
        n => format!("{n} votes"),
    };
    let values = [
        ("a", variable("OPTION_A", "Cats")),
        ("b", variable("OPTION_B", "Dogs")),
        ("percent_a", format!("{percent_a:.1}")),
        ("percent_b", format!("{percent_b:.1}")),
        ("n_a", n_a.to_string()),
        ("n_b", n_b.to_string()),
        ("total", total),
        ("host", host_name()),
        ("client", client.ip().to_canonical().to_string()),
    ];
    Ok(fill(PAGE, &values.each_ref().map(|(name, value)| (*name, value.as_str()))))
}

/// In percent; half and half while nobody has voted.
fn shares(n_a: i64, n_b: i64) -> (f64, f64) {
    if n_a + n_b == 0 {
        return (50.0, 50.0);
    }
    #[expect(clippy::cast_precision_loss, reason = "as many votes as a double counts")]
    let percent_a = 100.0 * n_a as f64 / (n_a + n_b) as f64;
    (percent_a, 100.0 - percent_a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_percent() {
        assert_eq!(shares(0, 0), (50.0, 50.0));
        assert_eq!(shares(3, 1), (75.0, 25.0));
        assert_eq!(shares(0, 2), (0.0, 100.0));
    }
}
