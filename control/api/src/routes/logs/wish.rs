//! What a client asks for (moby `api/server/router/container`, `daemon/cluster/services.go`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use control_model::{OutputPosition, OutputQuery, TaskId};
use http::StatusCode;

use super::Whose;
use crate::error::ApiError;
use crate::frames::Format;
use crate::query::{Query, unix_time};

const NANOS: i64 = 1_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub query: OutputQuery,
    pub format: Format,
}

/// Of what: Docker's words and codes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    OfContainer,
    OfSwarm,
}

impl Wish {
    pub fn of(query: &Query, asked: Asked, tty: bool) -> Result<Self, ApiError> {
        let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
        if !stdout && !stderr {
            return Err(asked.refusal("Bad parameters: you must choose at least one stream".into()));
        }
        let time = |key: &str| {
            unix_time(query.get(key)).map_err(|why| {
                asked.refusal(match asked {
                    Asked::OfContainer => why,
                    Asked::OfSwarm => format!("could not parse {key} timestamp: {why}"),
                })
            })
        };
        let output = OutputQuery {
            stdout,
            stderr,
            since: time("since")?,
            until: time("until")?,
            after: None,
            tail: asked.tail(query.get("tail"))?,
            follow: query.flag("follow"),
        };
        let format = Format { timestamps: query.flag("timestamps"), details: query.flag("details"), tty };
        Ok(Self { query: output, format })
    }

    pub fn with_tty(mut self, tty: bool) -> Self {
        self.format.tty = tty;
        self
    }

    /// As one asks a node for it, or for what is behind what was `read` of some: what it has of others came since, and counts as
    /// a whole.
    pub fn question(&self, whose: Whose, read: &BTreeMap<TaskId, OutputPosition>) -> String {
        let OutputQuery { stdout, stderr, since, until, after: _, tail, follow } = self.query;
        let mut question = match whose {
            Whose::Service(service) => format!("/mesh/logs?service={service}"),
            Whose::Task(task) => format!("/mesh/logs?task={task}"),
        };
        for (name, _) in [("stdout", stdout), ("stderr", stderr), ("follow", follow)]
            .into_iter()
            .filter(|(_, is_set)| *is_set)
        {
            // Writing to a text can't fail.
            let _ = write!(question, "&{name}=1");
        }
        let times = [("since", since), ("until", until)];
        for (name, time) in times.into_iter().filter_map(|(name, time)| Some((name, time?.0))) {
            let _ = write!(question, "&{name}={}.{:09}", time / NANOS, time % NANOS);
        }
        if let Some(tail) = tail.filter(|_| read.is_empty()) {
            let _ = write!(question, "&tail={tail}");
        }
        for (task, OutputPosition { file, offset }) in read {
            let _ = write!(question, "&after={task}.{file}.{offset}");
        }
        question
    }
}

/// What was read of some, of a [`Wish::question`].
pub fn positions(question: &Query) -> Result<BTreeMap<TaskId, OutputPosition>, ApiError> {
    let position = |text: &str| {
        let mut words = text.split('.');
        let task = words.next()?.parse().ok()?;
        let (file, offset) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        words.next().is_none().then_some((task, OutputPosition { file, offset }))
    };
    let all = question
        .all("after")
        .into_iter()
        .map(|text| position(text).ok_or_else(|| ApiError::invalid(format!("after is no position: {text}"))));
    all.collect()
}

impl Asked {
    /// Docker says what is wrong with a question about the swarm as if it were its own fault.
    fn refusal(self, why: String) -> ApiError {
        match self {
            Self::OfContainer => ApiError::invalid(why),
            Self::OfSwarm => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why),
        }
    }

    /// So many of the last lines; `None` is all.
    fn tail(self, text: &str) -> Result<Option<usize>, ApiError> {
        match (self, text.parse::<i64>()) {
            (_, Ok(number @ 0..)) => Ok(usize::try_from(number).ok()),
            // What is no number is all of a container's.
            (Self::OfContainer, _) => Ok(None),
            (Self::OfSwarm, _) if matches!(text, "" | "all") => Ok(None),
            (Self::OfSwarm, Ok(_)) => Err(self.refusal("negative tail values not supported".into())),
            (Self::OfSwarm, Err(_)) => {
                Err(self.refusal("tail value must be a positive integer or \"all\"".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use control_model::Timestamp;

    use super::*;

    fn query(text: &str) -> Query {
        Query::try_from_uri(&format!("/logs?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn what_can_not_be_is_refused_as_docker_refuses_it() {
        let of = |text: &str, asked| {
            Wish::of(&query(text), asked, false).map_err(|e| (e.status.as_u16(), e.message))
        };
        let tail =
            |text: &str, asked| of(&format!("stdout=1&tail={text}"), asked).map(|wish| wish.query.tail);
        for asked in [Asked::OfContainer, Asked::OfSwarm] {
            assert_eq!(tail("7", asked), Ok(Some(7)));
            assert_eq!(tail("all", asked), Ok(None));
        }
        assert_eq!(tail("-1", Asked::OfContainer), Ok(None));
        assert_eq!(tail("-1", Asked::OfSwarm), Err((500, "negative tail values not supported".into())));
        let words = "tail value must be a positive integer or \"all\"";
        assert_eq!(tail("x", Asked::OfSwarm), Err((500, words.into())));
        let none = "Bad parameters: you must choose at least one stream";
        assert_eq!(of("", Asked::OfContainer), Err((400, none.into())));
        assert_eq!(of("", Asked::OfSwarm), Err((500, none.into())));
    }

    #[test]
    fn a_node_is_asked_for_what_the_client_wants() {
        let whose = Whose::Task(TaskId::from_bits(7));
        let wish = Wish {
            query: OutputQuery {
                stdout: true,
                stderr: false,
                since: Some(Timestamp(1_500_000_000)),
                until: None,
                after: None,
                tail: Some(3),
                follow: true,
            },
            format: Format { timestamps: false, details: false, tty: false },
        };
        let read = BTreeMap::from(
            [7, 8].map(|n: u64| (TaskId::from_bits(n.into()), OutputPosition { file: n, offset: u64::MAX })),
        );
        let asked = Query::try_from_uri(&wish.question(whose, &read).parse().unwrap()).unwrap();
        assert_eq!(Whose::of(&asked), Ok(whose));
        assert_eq!(positions(&asked), Ok(read));
        let going_on = Wish::of(&asked, Asked::OfSwarm, false).map(|wish| wish.query.tail);
        assert_eq!(going_on, Ok(None), "what others have is all new");
        let first = Query::try_from_uri(&wish.question(whose, &BTreeMap::new()).parse().unwrap()).unwrap();
        assert_eq!(Wish::of(&first, Asked::OfSwarm, false), Ok(wish));
        let wrong = Query::try_from_uri(&"/mesh/logs?after=7".parse().unwrap()).unwrap();
        assert_eq!(positions(&wrong).map_err(|error| error.message), Err("after is no position: 7".into()));
    }
}
