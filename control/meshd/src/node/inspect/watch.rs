//! Single packets, as the programs tell of them. The kernel's buffer has one reader: one watch at a time on a node.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control_api::node::InspectError;
use dataplane_kernel::inspect::trace::AT_MOST;
use dataplane_kernel::inspect::{Watch, Which};
use dataplane_model::ProtocolNumber;
use dataplane_model::inspect::{FlowSamples, MAX_SAMPLES};
use tokio::sync::OwnedMutexGuard;

use super::read;
use crate::host::Host;

/// How long `meshctl flows` looks at a time.
const WINDOW: Duration = Duration::from_secs(1);

/// Who watches.
#[derive(Default)]
pub struct Watching {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Waits for marked packets of a trace that goes on at another node.
    marked: Mutex<Option<Marked>>,
}

/// Held by whoever watches.
pub type Turn = OwnedMutexGuard<()>;

/// A watch between two questions.
pub struct Marked {
    pub watch: Watch,
    until: Instant,
    _turn: Turn,
}

impl Watching {
    /// One of `every` packets, for a second.
    pub async fn samples(&self, host: &Host, every: u32) -> Result<FlowSamples, InspectError> {
        let turn = self.turn(false)?;
        read(host, move |pins| {
            let _turn = turn;
            Watch::begin(pins, Which::OneOf(every), AT_MOST)?.collect(WINDOW, MAX_SAMPLES, |_| false)
        })
        .await
    }

    /// Waits for packets with this source port; for none if it is 0. A newer trace takes an older one's place.
    pub async fn mark(&self, host: &Host, protocol: ProtocolNumber, port: u16) -> Result<(), InspectError> {
        drop(self.take_marked());
        if port == 0 {
            return Ok(());
        }
        let turn = self.turn(true)?;
        let watch =
            read(host, move |pins| Watch::begin(pins, Which::Marked { protocol, port }, AT_MOST)).await?;
        *self.lock() = Some(Marked { watch, until: Instant::now() + AT_MOST, _turn: turn });
        Ok(())
    }

    /// The watch that waits for marked packets, if there is one.
    pub fn take_marked(&self) -> Option<Marked> {
        self.lock().take()
    }

    /// The right to watch. What waits for a trace that was given up, or with `displaces` for any, is none.
    pub fn turn(&self, displaces: bool) -> Result<Turn, InspectError> {
        let mut marked = self.lock();
        if displaces || marked.as_ref().is_some_and(|marked| marked.until < Instant::now()) {
            *marked = None;
        }
        drop(marked);
        let busy = |_| InspectError("somebody else watches this node's packets: try again".to_owned());
        self.turn.clone().try_lock_owned().map_err(busy)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Marked>> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
