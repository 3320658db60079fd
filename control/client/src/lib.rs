//! Engine API and inspection client over a unix socket.
