//! The processes of `docker exec`: made, begun, and remembered for a while when they have ended, for clients ask for their codes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dto::events::Actor;
use crate::dto::exec::ExecConfig;
use crate::engine::Resize;

/// More than this are kept only while they run.
const MAX_KEPT: usize = 256;

/// All of them, by id.
#[derive(Debug, Default)]
pub struct Execs(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_id: BTreeMap<String, Arc<Exec>>,
    /// The ids, the oldest first.
    order: Vec<String>,
}

/// One.
#[derive(Debug)]
pub struct Exec {
    pub id: String,
    /// As events tell of it.
    pub container: Actor,
    pub config: ExecConfig,
    stage: Mutex<Stage>,
}

/// How far it has come.
#[derive(Debug, Clone)]
pub enum Stage {
    Made,
    Running(Resize),
    Ended(i32),
}

impl Execs {
    /// Makes one in a container.
    pub fn make(&self, container: Actor, config: ExecConfig) -> Arc<Exec> {
        let id = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let exec = Arc::new(Exec { id: id.clone(), container, config, stage: Mutex::new(Stage::Made) });
        let mut kept = self.lock();
        kept.by_id.insert(id.clone(), exec.clone());
        kept.order.push(id);
        kept.forget();
        exec
    }

    pub fn get(&self, id: &str) -> Option<Arc<Exec>> {
        self.lock().by_id.get(id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The oldest that don't run, down to [`MAX_KEPT`].
    fn forget(&mut self) {
        let mut n_more = self.order.len().saturating_sub(MAX_KEPT);
        let by_id = &mut self.by_id;
        self.order.retain(|id| {
            let is_over = by_id.get(id).is_none_or(|exec| !matches!(exec.stage(), Stage::Running(_)));
            let goes = n_more > 0 && is_over;
            if goes {
                n_more -= 1;
                by_id.remove(id);
            }
            !goes
        });
    }
}

impl Exec {
    pub fn stage(&self) -> Stage {
        self.locked().clone()
    }

    /// It is about to run; false if it did so before.
    pub fn begin(&self) -> bool {
        let mut stage = self.locked();
        let is_new = matches!(*stage, Stage::Made);
        if is_new {
            *stage = Stage::Running(Resize::none());
        }
        is_new
    }

    /// Its terminal has a size from now on.
    pub fn has_console(&self, resize: Resize) {
        *self.locked() = Stage::Running(resize);
    }

    /// It has ended, or could not begin.
    pub fn end(&self, code: i32) {
        *self.locked() = Stage::Ended(code);
    }

    fn locked(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_is_remembered_for_a_while() {
        let execs = Execs::default();
        let running = execs.make(Actor::default(), ExecConfig::default());
        assert!(running.begin());
        assert!(!running.begin(), "it runs once");
        let ended = execs.make(Actor::default(), ExecConfig::default());
        ended.end(7);
        assert!(matches!(execs.get(&ended.id).unwrap().stage(), Stage::Ended(7)));
        for _ in 0..MAX_KEPT {
            execs.make(Actor::default(), ExecConfig::default());
        }
        assert!(execs.get(&ended.id).is_none());
        assert!(execs.get(&running.id).is_some());
    }
}
