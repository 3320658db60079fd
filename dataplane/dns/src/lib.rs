//! Service DNS at 127.0.0.11 in each sandbox: a pure answer function and its servers.
