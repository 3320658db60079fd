//! Docker's words for the model's enumerations, both ways.

use control_model::object::{NodeState, UpdateState};
use control_model::spec::{
    Availability, EndpointMode, FailureAction, MountKind, Protocol, PublishMode, RestartCondition, Role,
    UpdateOrder,
};

/// A type with one word per value.
pub trait Words: Copy + PartialEq + 'static {
    const WORDS: &'static [(Self, &'static str)];

    /// The word for the value.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(value, _)| *value == self).map_or("unknown", |(_, word)| word)
    }

    /// The value for the word.
    fn of_word(text: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(_, word)| *word == text).map(|(value, _)| *value)
    }
}

macro_rules! words {
    ($kind:ty: $($value:ident = $word:literal),+ $(,)?) => {
        impl Words for $kind {
            const WORDS: &'static [(Self, &'static str)] = &[$((<$kind>::$value, $word)),+];
        }
    };
}

words!(Role: Worker = "worker", Manager = "manager");
words!(Availability: Active = "active", Pause = "pause", Drain = "drain");
words!(NodeState: Unknown = "unknown", Down = "down", Ready = "ready", Disconnected = "disconnected");
words!(EndpointMode: Vip = "vip", Dnsrr = "dnsrr");
words!(Protocol: Tcp = "tcp", Udp = "udp", Sctp = "sctp");
words!(PublishMode: Ingress = "ingress", Host = "host");
words!(MountKind: Bind = "bind", Volume = "volume", Tmpfs = "tmpfs");
words!(RestartCondition: None = "none", OnFailure = "on-failure", Any = "any");
words!(FailureAction: Pause = "pause", Continue = "continue", Rollback = "rollback");
words!(UpdateOrder: StopFirst = "stop-first", StartFirst = "start-first");
words!(UpdateState:
    Updating = "updating",
    Paused = "paused",
    Completed = "completed",
    RollbackStarted = "rollback_started",
    RollbackPaused = "rollback_paused",
    RollbackCompleted = "rollback_completed",
);
