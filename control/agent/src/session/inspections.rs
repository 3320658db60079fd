//! Questions of managers about this node, and its answers.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use control_rpc::{MAX_BODY_BYTES, MAX_MESSAGE_BYTES, MAX_QUESTION_TIME, MAX_QUESTIONS, pb};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Client;

/// An answer on its way: JSON, or why there is none.
pub type Answering = Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>>;

/// What this node answers to a path and query of its inspection API.
pub type Inspect = Arc<dyn Fn(String) -> Answering + Send + Sync>;

/// Answers for as long as the session lasts. That a manager has no questions, or can't ask them, ends no session.
pub(super) async fn answer_questions(client: Client, session_id: String, inspect: &Inspect) -> Infallible {
    let (answers, outgoing) = mpsc::channel(MAX_QUESTIONS);
    let hello = pb::InspectionAnswer { session_id, ..pb::InspectionAnswer::default() };
    if answers.send(hello).await.is_ok()
        && let Err(status) = converse(client, outgoing, &answers, inspect).await
    {
        tracing::debug!(%status, "no questions are answered in this session");
    }
    std::future::pending().await
}

async fn converse(
    mut client: Client,
    outgoing: mpsc::Receiver<pb::InspectionAnswer>,
    answers: &mpsc::Sender<pb::InspectionAnswer>,
    inspect: &Inspect,
) -> Result<(), Status> {
    client = client.max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut questions = client.inspections(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut under_way = JoinSet::new();
    while let Some(question) = next(&mut questions, &mut under_way).await? {
        let (answers, answering) = (answers.clone(), inspect(question.question));
        let is_too_many = under_way.len() >= MAX_QUESTIONS;
        under_way.spawn(async move {
            let outcome = if is_too_many {
                Err("too many questions are under way".to_owned())
            } else {
                in_time(answering).await
            };
            // The session has ended meanwhile.
            let _ = answers.send(to_message(question.id, outcome)).await;
        });
    }
    Ok(())
}

/// The next question; what is answered meanwhile is put away.
async fn next(
    questions: &mut Streaming<pb::InspectionQuestion>,
    under_way: &mut JoinSet<()>,
) -> Result<Option<pb::InspectionQuestion>, Status> {
    loop {
        tokio::select! {
            question = questions.message() => return question,
            Some(_) = under_way.join_next() => {}
        }
    }
}

async fn in_time(answering: Answering) -> Result<Vec<u8>, String> {
    let late = |_| format!("the node has no answer after {MAX_QUESTION_TIME:?}");
    tokio::time::timeout(MAX_QUESTION_TIME, answering).await.map_err(late)?
}

fn to_message(id: u64, outcome: Result<Vec<u8>, String>) -> pb::InspectionAnswer {
    let outcome = outcome.and_then(|body| match body.len() {
        n_bytes if n_bytes > MAX_BODY_BYTES => Err(format!(
            "the answer has {n_bytes} bytes, and {MAX_BODY_BYTES} are the most between nodes: ask on the node itself"
        )),
        _ => Ok(body),
    });
    let (body, error) = match outcome {
        Ok(body) => (body, String::new()),
        // Empty would be an answer.
        Err(error) if error.is_empty() => (Vec::new(), "it does not say why".to_owned()),
        Err(error) => (Vec::new(), error),
    };
    pb::InspectionAnswer { session_id: String::new(), id, body, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_too_long_says_so() {
        let fits = to_message(3, Ok(vec![b' '; MAX_BODY_BYTES]));
        assert_eq!((fits.id, fits.body.len(), fits.error.as_str()), (3, MAX_BODY_BYTES, ""));
        let long = to_message(4, Ok(vec![b' '; MAX_BODY_BYTES + 1]));
        assert!(long.body.is_empty() && long.error.contains("ask on the node itself"), "{}", long.error);
        assert!(!to_message(5, Err(String::new())).error.is_empty());
    }
}
