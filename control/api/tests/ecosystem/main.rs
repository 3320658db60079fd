//! What others have written against Docker's API, as it is run elsewhere: Prometheus, docker-py, bollard; and the requests
//! of those that can't be run here.

#[path = "../common/mod.rs"]
mod common;

mod prometheus;
