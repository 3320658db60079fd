//! What a worker decides, without what it does: assignments, results and the clock in; actions and views out. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use control_model::executor::Provisions;
use control_model::gossip::{Opinion, Said};
use control_model::{Assignment, AssignmentKey, AssignmentUpdate, Network, Task, TaskId, Timestamp};
use dataplane_model::{NodeView, Report, Sandbox, SandboxId, SandboxStatus, Table};

use crate::local::Local;
use crate::machine::{Action, Input, Machine};
use crate::said::Sayer;
use crate::set::{AssignmentSet, SetError};
use crate::view::{NodeContext, ViewMaker, addresses6};

/// The node's assignment set, its task machine, and the view that both make.
#[derive(Debug)]
pub struct Desk {
    machine: Machine,
    set: AssignmentSet,
    context: NodeContext,
    maker: ViewMaker,
    opinion: Arc<Opinion>,
    sayer: Sayer,
    local: Local,
    shown: Option<NodeView>,
    revision: u64,
}

impl Desk {
    /// Knows nothing yet, and takes no assignments of a fencing epoch before `epoch`. Views get revisions above `revision`,
    /// the last that the data plane was given by anyone.
    pub fn new(context: NodeContext, epoch: u64, revision: u64) -> Self {
        Self::over(Machine::new(false), context, epoch, revision)
    }

    /// The same for an executor that gives namespaces ([`control_model::executor::Executor::gives_namespaces`]).
    pub fn of_giver(context: NodeContext, epoch: u64, revision: u64) -> Self {
        Self::over(Machine::new(true), context, epoch, revision)
    }

    fn over(machine: Machine, context: NodeContext, epoch: u64, revision: u64) -> Self {
        Self {
            machine,
            set: AssignmentSet::since(epoch),
            maker: ViewMaker::new(context.clone()),
            context,
            opinion: Arc::default(),
            sayer: Sayer::default(),
            local: Local::default(),
            shown: None,
            revision,
        }
    }

    /// What the managers have assigned to this node.
    pub fn set(&self) -> &AssignmentSet {
        &self.set
    }

    /// Takes an update of the set in, or refuses it and stays as it is.
    pub fn assign(&mut self, update: AssignmentUpdate, now: Timestamp) -> Result<Vec<Action>, SetError> {
        let touched = touched_tasks(&update);
        let is_complete = matches!(update, AssignmentUpdate::Complete { .. });
        self.set.apply(update)?;
        let input = if is_complete {
            Input::Set(self.set.tasks.clone().into_iter().collect())
        } else {
            Input::Changed(touched.into_iter().map(|id| (id, self.set.tasks.get(&id).cloned())).collect())
        };
        Ok(self.machine.handle(input, now))
    }

    /// Takes a result in.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Action> {
        self.machine.handle(input, now)
    }

    /// Takes in what the data plane says.
    pub fn reported(&mut self, report: &Report, now: Timestamp) -> Vec<Action> {
        let mut actions = self.machine.handle(Input::Sandboxes(self.sandboxes(report)), now);
        actions.extend(self.machine.handle(Input::Applied(report.applied_revision), now));
        actions
    }

    /// Takes in what gossip thinks of other nodes and their tasks.
    pub fn hear(&mut self, opinion: Arc<Opinion>) {
        self.maker.hear(opinion.clone());
        self.opinion = opinion;
    }

    /// Takes in the sandboxes that the node has beside those of its tasks: they are in every view.
    pub fn shelter(&mut self, local: Table<SandboxId, Sandbox>) {
        self.local.take(local);
    }

    /// What gossip is to be told; nothing before the first complete set.
    pub fn say(&mut self) -> Option<Said> {
        let is_complete = self.set.is_complete();
        is_complete.then(|| self.sayer.say(&self.context, &self.set, self.machine.tasks(), &self.opinion))
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.machine.next_deadline()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Action> {
        self.machine.tick(now)
    }

    /// Brings the view up to date, after every input: the one to give to the data plane if anything in it has changed, and
    /// what follows from that. Before the first complete set there is none: an incomplete view would take away what still
    /// serves.
    pub fn show(&mut self, now: Timestamp) -> (Option<NodeView>, Vec<Action>) {
        if !self.set.is_complete() {
            return (None, Vec::new());
        }
        let is_other = self.maker.next(&self.set, self.machine.begun()).is_some();
        if !self.local.is_new() && !is_other {
            return (None, Vec::new());
        }
        let view = self.whole_view();
        let mut changed = None;
        if self.shown.as_ref() != Some(&view) {
            self.revision += 1;
            let view = NodeView { revision: self.revision, ..view };
            self.shown = Some(view.clone());
            changed = Some(view);
        }
        (changed, self.machine.handle(Input::Shown(self.revision), now))
    }

    fn whole_view(&mut self) -> NodeView {
        let mut view = NodeView { revision: self.revision, ..self.maker.view().clone() };
        self.local.add_to(&mut view);
        view
    }

    fn sandboxes(&self, report: &Report) -> BTreeMap<TaskId, Result<PathBuf, String>> {
        let rows = report.sandboxes.iter().filter_map(|(id, status)| {
            let status = match (self.local.refusal(id), status) {
                (Some(reason), _) => Err(reason.to_owned()),
                (None, SandboxStatus::Ready { netns }) => Ok(netns.clone()),
                (None, SandboxStatus::Failed { reason }) => Err(reason.clone()),
            };
            Some((id.0.parse().ok()?, status))
        });
        rows.collect()
    }

    /// What `task` is made of besides its own spec.
    pub fn provisions(&self, task: &Task) -> Provisions {
        let files = &task.spec.container.dependencies;
        Provisions {
            addresses6: addresses6(task, &self.set.networks),
            dependencies: files
                .iter()
                .filter_map(|file| self.set.dependencies.get(&file.id).cloned())
                .collect(),
        }
    }

    /// The networks of the set.
    pub fn networks(&self) -> Vec<Network> {
        self.set.networks.values().cloned().collect()
    }
}

/// Tasks that an increment names.
fn touched_tasks(update: &AssignmentUpdate) -> Vec<TaskId> {
    let AssignmentUpdate::Incremental { upserts, removals, .. } = update else { return Vec::new() };
    let put = upserts.iter().map(Assignment::key);
    let keys = put.chain(removals.iter().copied());
    keys.filter_map(|key| if let AssignmentKey::Task(id) = key { Some(id) } else { None }).collect()
}
