//! Replies that may be old say so: without a leader, reads are answered from this manager's own replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue};

/// Header of such a reply; its value is `true`. Others don't have it.
pub const STALE: HeaderName = HeaderName::from_static("mesh-stale");

tokio::task_local! {
    /// Set by a read of the request that this task answers.
    static MARK: Arc<AtomicBool>;
}

/// Puts the header on the reply to a request whose reads were stale.
pub async fn tell(request: Request, next: Next) -> Response {
    let mark = Arc::<AtomicBool>::default();
    let mut reply = MARK.scope(mark.clone(), next.run(request)).await;
    if mark.load(Ordering::Relaxed) {
        reply.headers_mut().insert(STALE, HeaderValue::from_static("true"));
    }
    reply
}

/// The mark of the request that is being answered; one that nobody reads outside of any.
pub fn mark() -> Arc<AtomicBool> {
    MARK.try_with(Arc::clone).unwrap_or_default()
}
