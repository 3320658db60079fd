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
    #[error("template: what it expands to is longer than {0} bytes")]
    TooLong(usize),
}

/// What is wrong with a template, and where: for texts whose content is nobody else's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// From 1.
    pub line: usize,
    pub error: TemplateError,
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
        self.expand_with(text, usize::MAX, &|_, _| None).map_err(|misfit| misfit.error)
    }

    /// The same, to at most `limit` bytes, with calls of functions that take one quoted argument (`{{ env "HOME" }}`): `call`
    /// has their values, `None` of what it does not know.
    pub fn expand_with(
        &self,
        text: &str,
        limit: usize,
        call: &dyn Fn(&str, &str) -> Option<String>,
    ) -> Result<String, Misfit> {
        let mut out = String::new();
        let mut rest = text;
        let misfit = |rest: &str, error| {
            let before = &text[..text.len() - rest.len()];
            Misfit { line: before.matches('\n').count() + 1, error }
        };
        let mut put = |piece: &str, rest: &str| {
            if out.len().saturating_add(piece.len()) > limit {
                return Err(misfit(rest, TemplateError::TooLong(limit)));
            }
            out.push_str(piece);
            Ok(())
        };
        while let Some(open) = rest.find("{{") {
            put(&rest[..open], rest)?;
            rest = &rest[open..];
            let action = &rest[2..];
            let unclosed = || misfit(rest, TemplateError::Unclosed(text.to_owned()));
            let close = action.find("}}").ok_or_else(unclosed)?;
            let name = action[..close].trim();
            let called = || function_call(name).and_then(|(function, argument)| call(function, argument));
            let unknown = || misfit(rest, TemplateError::Unknown(name.to_owned()));
            put(&self.value(name).or_else(called).ok_or_else(unknown)?, rest)?;
            rest = &action[close + 2..];
        }
        put(rest, rest)?;
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

/// The function and the argument of `name "argument"`, or of the same with backquotes. Nothing is escaped in it.
fn function_call(action: &str) -> Option<(&str, &str)> {
    let (function, rest) = action.split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let quote = rest.chars().next().filter(|quote| ['"', '`'].contains(quote))?;
    let argument = rest.strip_prefix(quote)?.strip_suffix(quote)?;
    (!argument.contains([quote, '\\'])).then_some((function, argument))
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

    fn context(task: &Task) -> TemplateContext<'_> {
        TemplateContext { task, node_hostname: "n1", node_os: "linux", node_architecture: "aarch64" }
    }

    #[test]
    fn placeholders_are_replaced_and_others_refused() {
        let task = task();
        let context = context(&task);
        assert_eq!(context.expand("plain").expect("valid"), "plain");
        assert_eq!(
            context.expand("{{.Service.Name}}-{{ .Task.Slot }}@{{.Node.Hostname}}!").expect("valid"),
            "web-3@n1!"
        );
        assert_eq!(context.expand("{{.Task.Name}}").expect("valid"), format!("web.3.{}", task.id));
        assert_eq!(
            context.expand("{{.Service.ID}} {{.Node.ID}} {{.Task.ID}}").expect("valid"),
            [2, 4, 1].map(|digit| format!("{digit:025}")).join(" ")
        );
        let labels = context.expand("{{.Service.Labels}}").expect_err("a task does not know them");
        assert!(labels.to_string().contains("{{.Service.Labels}} is not a known placeholder"), "{labels}");
        assert_eq!(
            context.expand("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}").expect("valid"),
            "linux/aarch64",
            "the node's own"
        );
        assert!(matches!(context.expand("{{.Task.Name"), Err(TemplateError::Unclosed(_))));
        let call = |function: &str, argument: &str| (function == "env").then(|| format!("<{argument}>"));
        assert_eq!(
            context.expand_with("a {{ env \"X Y\" }}{{env `Z`}}", 99, &call).expect("valid"),
            "a <X Y><Z>"
        );
        for bad in ["{{env X}}", "{{env \"a\" \"b\"}}", "{{other \"X\"}}", "{{env \"a\\n\"}}", "{{env}}"] {
            assert!(context.expand_with(bad, 99, &call).is_err(), "{bad}");
        }
        assert_eq!(context.expand("{{env \"X\"}}"), Err(TemplateError::Unknown("env \"X\"".into())));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_growth_has_a_limit() {
        let task = task();
        let context = context(&task);
        let long = |_: &str, _: &str| Some("x".repeat(1000));
        let found = |text: &str, limit| context.expand_with(text, limit, &long);
        assert_eq!(found("a\nb {{.Task.Slot}}\n {{ x }}", 99).map_err(|misfit| misfit.line), Err(3));
        assert_eq!(found("a\nb {{ open", 99).map_err(|misfit| misfit.line), Err(2));
        let misfit = Misfit { line: 2, error: TemplateError::TooLong(1500) };
        assert_eq!(found("{{f \"a\"}}\n{{f \"a\"}}", 1500), Err(misfit));
        assert_eq!(found("{{f \"a\"}}\n{{f \"a\"}}", 2001).map(|text| text.len()), Ok(2001));
    }
}
