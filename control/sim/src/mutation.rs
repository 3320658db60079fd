//! Deliberate faults in the simulation's own glue: each shows that a law can be found broken.

/// What the glue does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A manager sends an agent a task of another node.
    ForeignTask,
    /// A manager sends an agent a secret that none of its tasks needs.
    ForeignSecret,
    /// An increment loses its removals on the way.
    LostRemovals,
    /// A data plane says that it holds a view before it does.
    EarlyAcknowledgement,
    /// The log forgets a committed entry.
    ForgottenEntry,
    /// A status that the agent never gave is written: a running task becomes failed while its process runs.
    InventedStatus,
    /// A runtime says that a process has ended while it runs on.
    LateStop,
    /// A task of a job, and one that is moved, gets a twin in the slot beside its own.
    Twins,
    /// What gossip thinks reaches nobody.
    DeafToGossip,
    /// Managers don't note the heartbeats that they answer.
    LostHeartbeats,
    /// Daemons measure spans by the machine's clock.
    JumpingClocks,
}
