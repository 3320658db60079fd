//! `/metrics` over TCP: what may be read over the network, where the API may not. Whoever reaches the address can hold a
//! connection for a bounded time, and only so many at once.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::node::Node;
use crate::routes::metrics_router;

/// Connections at a time; the next one waits in the kernel's queue. A few servers scrape a node, a few seconds apart.
const MAX_CONNECTIONS: usize = 16;

/// A connection takes one request, and this long from its beginning to the last byte of the answer: Prometheus gives up
/// after 10 s by default.
const CONNECTION_LIFE: Duration = Duration::from_secs(10);

/// After an error of the listener that is none of a client's fault, as that no more files can be opened.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Serves `/metrics` alone on `listener` until `shutdown` completes; connections under way are cut then.
pub async fn serve_metrics(listener: TcpListener, node: Arc<dyn Node>, shutdown: impl Future<Output = ()>) {
    serve(listener, metrics_router(node), shutdown).await;
}

async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < MAX_CONNECTIONS;
        tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next() => (),
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(timeout(CONNECTION_LIFE, answer(stream, router.clone())));
                }
                Err(_) => sleep(ERROR_PAUSE).await,
            },
        }
    }
}

/// One request. What fails is the client's affair.
async fn answer(stream: TcpStream, router: Router) {
    let service = TowerToHyperService::new(router);
    let _ = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Semaphore;

    use super::*;

    async fn start(router: Router) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, router, std::future::pending()));
        (address, server)
    }

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Time goes on when nothing else does.
    #[tokio::test(start_paused = true)]
    async fn silent_clients_give_their_places_up() {
        let (address, _server) = start(Router::new().route("/metrics", get(async || "page"))).await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let patience = 10 * CONNECTION_LIFE;
        let answer = timeout(patience, ask(address)).await.expect("a place in time");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("page"), "{answer}");
        for mut stream in silent {
            let read = timeout(patience, stream.read_to_end(&mut Vec::new())).await.expect("it is cut");
            assert_eq!(read.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn only_so_many_are_answered_at_a_time() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let released = Arc::new(Semaphore::new(0));
        let (n_now, n_most, gate) = (now.clone(), most.clone(), released.clone());
        let page = async move || {
            n_most.fetch_max(n_now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            n_now.fetch_sub(1, Ordering::SeqCst);
            "page"
        };
        let (address, _server) = start(Router::new().route("/metrics", get(page))).await;
        let asking: Vec<_> = (0..3 * MAX_CONNECTIONS).map(|_| tokio::spawn(ask(address))).collect();
        while now.load(Ordering::SeqCst) < MAX_CONNECTIONS {
            tokio::task::yield_now().await;
        }
        released.add_permits(asking.len());
        for asked in asking {
            assert!(asked.await.unwrap().ends_with("page"));
        }
        assert_eq!(most.load(Ordering::SeqCst), MAX_CONNECTIONS);
    }
}
