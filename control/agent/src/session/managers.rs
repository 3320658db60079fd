//! Which manager to try next.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

/// Managers in the order in which they are to be tried.
#[derive(Debug)]
pub struct Managers {
    queue: VecDeque<SocketAddr>,
    /// Since the last session the local manager was tried in vain: the others have their turn.
    local_failed: bool,
}

impl Managers {
    /// Those that are known from before.
    pub fn new(known: Vec<SocketAddr>) -> Self {
        let mut managers = Self { queue: VecDeque::new(), local_failed: false };
        managers.replace(known);
        managers
    }

    /// The list is now this one. An empty list is no list: it would leave nobody to ask.
    pub fn replace(&mut self, listed: impl IntoIterator<Item = SocketAddr>) {
        let mut listed: BTreeSet<SocketAddr> = listed.into_iter().collect();
        if listed.is_empty() {
            return;
        }
        self.queue.retain(|addr| listed.remove(addr));
        self.queue.extend(listed);
    }

    /// The manager to try now: the local one, unless it has just failed and there is another.
    pub fn next(&mut self, local: Option<SocketAddr>) -> Option<SocketAddr> {
        let other = self.queue.iter().find(|addr| Some(**addr) != local).copied();
        match local {
            Some(local) if !self.local_failed || other.is_none() => {
                self.local_failed = true;
                Some(local)
            }
            _ => {
                // After one other manager the local one is tried again.
                self.local_failed = false;
                other
            }
        }
    }

    /// To the end of the queue.
    pub fn failed(&mut self, addr: SocketAddr) {
        if let Some(at) = self.queue.iter().position(|one| *one == addr) {
            self.queue.remove(at);
            self.queue.push_back(addr);
        }
    }

    /// To the front of the queue.
    pub fn succeeded(&mut self, addr: SocketAddr) {
        self.local_failed = false;
        self.queue.retain(|one| *one != addr);
        self.queue.push_front(addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn failed_managers_go_to_the_end() {
        let mut managers = Managers::new(vec![addr(1), addr(2), addr(3)]);
        let mut tried = Vec::new();
        for _ in 0..4 {
            let next = managers.next(None).expect("there are some");
            managers.failed(next);
            tried.push(next.port());
        }
        assert_eq!(tried, [1, 2, 3, 1]);
        managers.succeeded(addr(3));
        managers.replace([addr(3), addr(4)]);
        assert_eq!(managers.next(None), Some(addr(3)));
        managers.replace([]);
        assert_eq!(managers.next(None), Some(addr(3)), "an empty list is no list");
    }

    #[test]
    fn the_local_manager_is_preferred_and_alternates_when_it_fails() {
        let mut managers = Managers::new(vec![addr(1), addr(2), addr(9)]);
        let mut tried = Vec::new();
        for _ in 0..5 {
            let next = managers.next(Some(addr(9))).expect("there are some");
            managers.failed(next);
            tried.push(next.port());
        }
        assert_eq!(tried, [9, 1, 9, 2, 9]);
        assert_eq!(Managers::new(vec![]).next(Some(addr(9))), Some(addr(9)));
        assert_eq!(Managers::new(vec![]).next(None), None);
    }
}
