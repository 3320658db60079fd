//! Go-template placeholders in a task's host name, environment and mounts (Docker: "Create services using templates"):
//! `{{.Service.Name}}`, `{{.Node.Hostname}}`, `{{.Task.Slot}}` and their like. Plain field look-ups alone; pipes and
//! functions are refused, so that nothing is passed on half expanded.

use crate::object::{Slot, Task};

/// Why a text with `{{` could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("template: unclosed action in {0:?}")]
    Unclosed(String),
    #[error(
        "template: {{{{{0}}}}} is not a known placeholder (.Service.ID|Name, .Node.ID|Hostname|Platform.OS|\
         Platform.Architecture, .Task.ID|Name|Slot)"
    )]
    Unknown(String),
}

/// What placeholders stand for.
#[derive(Debug, Clone, Copy)]
pub struct TemplateContext<'a> {
    pub task: &'a Task,
    pub node_hostname: &'a str,
    /// The node's operating system and architecture, as it describes itself.
    pub node_os: &'a str,
    pub node_architecture: &'a str,
}

impl TemplateContext<'_> {
    /// `text` with every placeholder replaced. A text without `{{` comes back as it is.
    pub fn expand(&self, text: &str) -> Result<String, TemplateError> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(open) = rest.find("{{") {
            out.push_str(&rest[..open]);
            let action = &rest[open + 2..];
            let close = action.find("}}").ok_or_else(|| TemplateError::Unclosed(text.to_owned()))?;
            let name = action[..close].trim();
            out.push_str(&self.value(name).ok_or_else(|| TemplateError::Unknown(name.to_owned()))?);
            rest = &action[close + 2..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, name: &str) -> Option<String> {
        let task = self.task;
        Some(match name {
            ".Service.ID" => task.service.to_string(),
            ".Service.Name" => task.service_name.clone(),
            ".Node.ID" => task.node?.to_string(),
            ".Node.Hostname" => self.node_hostname.to_owned(),
            ".Node.Platform.OS" => self.node_os.to_owned(),
            ".Node.Platform.Architecture" => self.node_architecture.to_owned(),
            ".Task.ID" => task.id.to_string(),
            ".Task.Name" => task.name(),
            ".Task.Slot" => match task.slot {
                Slot::Replica(number) => number.to_string(),
                Slot::Node(node) => node.to_string(),
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NodeId, ServiceId, TaskId};

    fn task() -> Task {
        Task {
            service_name: "web".into(),
            node: Some(NodeId::from_bits(4)),
            ..Task::new(TaskId::from_bits(1), ServiceId::from_bits(2), Slot::Replica(3))
        }
    }

    #[test]
    fn placeholders_are_replaced_and_others_refused() {
        let task = task();
        let context = TemplateContext {
            task: &task,
            node_hostname: "n1",
            node_os: "linux",
            node_architecture: "aarch64",
        };
        assert_eq!(context.expand("plain").expect("valid"), "plain");
        assert_eq!(
            context.expand("{{.Service.Name}}-{{ .Task.Slot }}@{{.Node.Hostname}}!").expect("valid"),
            "web-3@n1!"
        );
        assert_eq!(context.expand("{{.Task.Name}}").expect("valid"), format!("web.3.{}", task.id));
        assert_eq!(
            context.expand("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}").expect("valid"),
            "linux/aarch64",
            "the node's own"
        );
        assert!(matches!(context.expand("{{.Task.Name"), Err(TemplateError::Unclosed(_))));
        assert_eq!(context.expand("{{env \"X\"}}"), Err(TemplateError::Unknown("env \"X\"".into())));
    }
}
