//! Questions of managers about this node, and its answers.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use control_rpc::{
    Channels, MAX_BODY_BYTES, MAX_LONG_ANSWERS, MAX_MESSAGE_BYTES, MAX_QUESTION_TIME, MAX_QUESTIONS, pb,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

use super::Client;

/// What managers may ask of this node: paths and queries of its inspection API. The error says why there is no answer.
#[async_trait]
pub trait Inspect: Send + Sync + 'static {
    /// The whole answer: JSON.
    async fn answer(&self, question: String) -> Result<Vec<u8>, String>;
    /// One that may go on for long, piece by piece.
    async fn long_answer(&self, question: String) -> Result<LongAnswer, String>;
}

/// The pieces of an answer, which an error ends. Dropped when nobody wants more.
pub type LongAnswer = Pin<Box<dyn Stream<Item = Result<Vec<u8>, String>> + Send>>;

/// The manager that asks, and the session in which it does.
pub(super) struct Asker<'a> {
    pub client: Client,
    pub channels: &'a Channels,
    pub addr: SocketAddr,
    pub session_id: String,
}

/// Answers for as long as the session lasts. That a manager has no questions, or can't ask them, ends no session.
pub(super) async fn answer_questions(asker: Asker<'_>, inspect: &Arc<dyn Inspect>) -> Infallible {
    let (answers, outgoing) = mpsc::channel(MAX_QUESTIONS);
    let session_id = asker.session_id.clone();
    let hello = pb::InspectionAnswer { session_id, ..pb::InspectionAnswer::default() };
    if answers.send(hello).await.is_ok()
        && let Err(status) = converse(asker, outgoing, &answers, inspect).await
    {
        tracing::debug!(%status, "no questions are answered in this session");
    }
    std::future::pending().await
}

async fn converse(
    asker: Asker<'_>,
    outgoing: mpsc::Receiver<pb::InspectionAnswer>,
    answers: &mpsc::Sender<pb::InspectionAnswer>,
    inspect: &Arc<dyn Inspect>,
) -> Result<(), Status> {
    let mut client = asker.client.clone().max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut questions = client.inspections(ReceiverStream::new(outgoing)).await?.into_inner();
    let (mut short, mut long) = (JoinSet::new(), JoinSet::new());
    while let Some(question) = next(&mut questions, &mut short, &mut long).await? {
        let pb::InspectionQuestion { id, question, long: is_long } = question;
        let under_way = if is_long { long.len() } else { short.len() };
        let (answers, inspect) = (answers.clone(), Arc::clone(inspect));
        if under_way >= if is_long { MAX_LONG_ANSWERS } else { MAX_QUESTIONS } {
            let outcome = Err("too many questions are under way".to_owned());
            // The session has ended meanwhile.
            let _ = answers.send(to_message(id, outcome)).await;
        } else if is_long {
            let client = Client::new(asker.channels.for_long_answers(asker.addr));
            let first = pb::AnswerPiece { session_id: asker.session_id.clone(), id, ..Default::default() };
            long.spawn(async move {
                if let Err(error) = answer_at_length(client, first, inspect, question).await {
                    let _ = answers.send(to_message(id, Err(error))).await;
                }
            });
        } else {
            short.spawn(async move {
                let outcome = in_time(inspect.answer(question)).await;
                let _ = answers.send(to_message(id, outcome)).await;
            });
        }
    }
    Ok(())
}

/// Sends a long answer behind its `first` piece, for as long as there is one and it is wanted. The error is why it did not begin.
async fn answer_at_length(
    client: Client,
    first: pb::AnswerPiece,
    inspect: Arc<dyn Inspect>,
    question: String,
) -> Result<(), String> {
    let answer = tokio::time::timeout(MAX_QUESTION_TIME, inspect.long_answer(question));
    let answer = answer.await.map_err(|_| late())??;
    let mut client = client.max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (pieces, outgoing) = mpsc::channel(1);
    let call = client.stream_answer(ReceiverStream::new(outgoing));
    // Whoever ends first: the answer, or who wants it.
    let (sent, ()) = tokio::join!(call, send_pieces(first, answer, pieces));
    sent.map(drop).map_err(|status| status.message().to_owned())
}

async fn send_pieces(first: pb::AnswerPiece, mut answer: LongAnswer, pieces: mpsc::Sender<pb::AnswerPiece>) {
    let mut next = first;
    while pieces.send(next).await.is_ok() {
        let piece = tokio::select! {
            piece = answer.next() => piece,
            () = pieces.closed() => return,
        };
        next = match piece {
            Some(Ok(body)) => pb::AnswerPiece { body, ..Default::default() },
            Some(Err(error)) => pb::AnswerPiece { error: never_empty(error), ..Default::default() },
            None => {
                // An error is the asker's end, who needs no other.
                let _ = pieces.send(pb::AnswerPiece { last: true, ..Default::default() }).await;
                return;
            }
        };
    }
}

/// The next question; what is answered meanwhile is put away.
async fn next(
    questions: &mut Streaming<pb::InspectionQuestion>,
    short: &mut JoinSet<()>,
    long: &mut JoinSet<()>,
) -> Result<Option<pb::InspectionQuestion>, Status> {
    loop {
        tokio::select! {
            question = questions.message() => return question,
            Some(_) = short.join_next() => {}
            Some(_) = long.join_next() => {}
        }
    }
}

async fn in_time(answering: impl Future<Output = Result<Vec<u8>, String>>) -> Result<Vec<u8>, String> {
    tokio::time::timeout(MAX_QUESTION_TIME, answering).await.map_err(|_| late())?
}

fn late() -> String {
    format!("the node has no answer after {MAX_QUESTION_TIME:?}")
}

/// Empty would be an answer.
fn never_empty(error: String) -> String {
    if error.is_empty() { "it does not say why".to_owned() } else { error }
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
        Err(error) => (Vec::new(), never_empty(error)),
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
