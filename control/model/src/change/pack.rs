//! Changes as they travel and are kept: tasks that are made alike say what they share once, and a task that changes says what
//! is new. The leader's loops think in whole tasks; ten thousand of them are a thousand times what is said.

use serde::{Deserialize, Serialize};

use super::{Change, Object};
use crate::generic::GenericResources;
use crate::id::{NodeId, TaskId};
use crate::object::{NetworkAttachment, Slot, Task, TaskStatus};
use crate::spec::PortConfig;

/// Tasks in one [`TasksAlike`].
const MAX_ALIKE: usize = 1000;

/// New tasks that are alike but for their ids, slots and nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TasksAlike {
    /// The first of them.
    pub like: Task,
    /// All of them, with the node where one has been chosen.
    pub made: Vec<(TaskId, Slot, Option<NodeId>)>,
}

impl TasksAlike {
    /// Each task whole.
    pub fn tasks(&self) -> impl Iterator<Item = Task> {
        self.made.iter().map(|(id, slot, node)| Task {
            id: *id,
            slot: *slot,
            node: *node,
            ..self.like.clone()
        })
    }

    fn takes(&self, task: &Task) -> bool {
        let Task { id, slot, node, .. } = *task;
        self.made.len() < MAX_ALIKE && *task == Task { id, slot, node, ..self.like.clone() }
    }
}

/// What is new of a task; `None` is as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEdit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PortConfig>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachments: Option<Vec<NetworkAttachment>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generic: Option<GenericResources>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<TaskStatus>,
}

impl TaskEdit {
    /// What makes `new` of `old`, if this type can say it.
    fn between(old: &Task, new: &Task) -> Option<Self> {
        let edit = Self {
            node: new.node.filter(|_| new.node != old.node),
            ports: (new.ports != old.ports).then(|| new.ports.clone()),
            attachments: (new.attachments != old.attachments).then(|| new.attachments.clone()),
            generic: (new.generic != old.generic).then(|| new.generic.clone()),
            status: (new.status != old.status).then(|| new.status.clone()),
        };
        (edit.applied(old) == Task { meta: old.meta, ..new.clone() }).then_some(edit)
    }

    /// `old` with what is new.
    pub fn applied(&self, old: &Task) -> Task {
        let mut task = old.clone();
        task.node = self.node.or(task.node);
        task.ports.clone_from(self.ports.as_ref().unwrap_or(&old.ports));
        task.attachments.clone_from(self.attachments.as_ref().unwrap_or(&old.attachments));
        task.generic.clone_from(self.generic.as_ref().unwrap_or(&old.generic));
        task.status.clone_from(self.status.as_ref().unwrap_or(&old.status));
        task
    }
}

/// The same changes in fewer words. `now` tells the task as it stands.
pub fn pack<'a>(changes: Vec<Change>, now: impl Fn(TaskId) -> Option<&'a Task>) -> Vec<Change> {
    let mut packed: Vec<Change> = Vec::with_capacity(changes.len());
    for change in changes {
        match change {
            Change::Create(Object::Task(task)) => add_created(&mut packed, *task),
            Change::Update { object: Object::Task(task), expected } => {
                let old = now(task.id).filter(|old| old.meta.version == expected);
                packed.push(match old.and_then(|old| TaskEdit::between(old, &task)) {
                    Some(edit) => Change::TaskEdit { id: task.id, expected, edit: Box::new(edit) },
                    None => Change::Update { object: Object::Task(task), expected },
                });
            }
            other => packed.push(other),
        }
    }
    packed
}

fn add_created(packed: &mut Vec<Change>, task: Task) {
    let made = (task.id, task.slot, task.node);
    match packed.last_mut() {
        Some(Change::CreateTasks(alike)) if alike.takes(&task) => alike.made.push(made),
        _ => packed.push(Change::CreateTasks(Box::new(TasksAlike { like: task, made: vec![made] }))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ServiceId;
    use crate::object::Meta;
    use crate::task_state::TaskState;
    use crate::time::Timestamp;

    fn task(id: u128, slot: u64) -> Task {
        Task::new(TaskId::from_bits(id), ServiceId::from_bits(1), Slot::Replica(slot))
    }

    fn created(task: Task) -> Change {
        Change::Create(Object::Task(Box::new(task)))
    }

    fn updated(task: Task) -> Change {
        Change::Update { expected: task.meta.version, object: Object::Task(Box::new(task)) }
    }

    #[test]
    fn tasks_alike_are_said_together_and_others_alone() {
        let here = Task { node: Some(NodeId::from_bits(7)), ..task(3, 3) };
        let other = Task { service_name: "other".into(), ..task(4, 4) };
        let all = [task(1, 1), task(2, 2), here, other];
        let packed = pack(all.iter().cloned().map(created).collect(), |_| None);
        let tasks: Vec<Vec<Task>> = packed
            .iter()
            .map(|change| match change {
                Change::CreateTasks(alike) => alike.tasks().collect(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(tasks, [all[..3].to_vec(), all[3..].to_vec()]);
    }

    #[test]
    fn no_more_are_said_together_than_the_limit() {
        let all = (0..2500).map(|i| created(task(i, 1))).collect();
        let packed = pack(all, |_| None);
        let sizes: Vec<usize> = packed.iter().map(Change::n_objects).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
    }

    #[test]
    fn an_update_is_what_is_new() {
        let old = Task { meta: Meta { version: 5, ..Meta::default() }, ..task(1, 1) };
        let status = TaskStatus { state: TaskState::Assigned, at: Timestamp(3), ..TaskStatus::default() };
        let new = Task { node: Some(NodeId::from_bits(2)), status: status.clone(), ..old.clone() };
        let packed = pack(vec![updated(new.clone())], |_| Some(&old));
        let [Change::TaskEdit { id, expected: 5, edit }] = &packed[..] else { panic!("{packed:?}") };
        assert_eq!((*id, edit.status.as_ref()), (old.id, Some(&status)));
        assert_eq!(edit.applied(&old), new);
        assert_eq!(
            (edit.ports.as_ref(), edit.attachments.as_ref(), edit.generic.as_ref()),
            (None, None, None)
        );
    }

    #[test]
    fn what_an_edit_cannot_say_stays_whole() {
        let old = Task { node: Some(NodeId::from_bits(2)), ..task(1, 1) };
        let news = [
            Task { node: None, ..old.clone() },
            Task { drained: true, ..old.clone() },
            Task { service_name: "other".into(), ..old.clone() },
        ];
        for new in news {
            let change = updated(new);
            assert_eq!(pack(vec![change.clone()], |_| Some(&old)), [change]);
        }
    }

    #[test]
    fn a_picture_that_is_old_stays_whole() {
        let seen = Task { drained: false, ..task(1, 1) };
        let now = Task { meta: Meta { version: 9, ..Meta::default() }, ..seen.clone() };
        let change = updated(Task { node: Some(NodeId::from_bits(2)), ..seen });
        for now in [Some(&now), None] {
            assert_eq!(pack(vec![change.clone()], |_| now), std::slice::from_ref(&change));
        }
    }
}
