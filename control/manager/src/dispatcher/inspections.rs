//! Questions about a node, asked of its agent in its session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_rpc::{
    MAX_LONG_ANSWERS, MAX_LONG_QUESTION_LEN, MAX_QUESTION_LEN, MAX_QUESTION_TIME, MAX_QUESTIONS, pb,
};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::sessions::Session;

/// Why a node was not asked, or has not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("no manager has a session with it")]
    NoSession,
    #[error("its daemon takes no questions: it may be of an older version")]
    Deaf,
    #[error("too many questions to it are under way: try again")]
    Busy,
    #[error("the question is too long")]
    TooLong,
    #[error("it has not answered within {0:?}")]
    Late(Duration),
    #[error("its session ended before it answered")]
    Gone,
    /// What the node says why it can't tell.
    #[error("{0}")]
    Refused(String),
    /// The manager that has its session could not be asked.
    #[error("the manager that has its session: {0}")]
    Manager(String),
}

/// Pieces of a long answer on their way.
const MAX_PIECES: usize = 4;

/// The pieces of a long answer, behind an error none. Dropped when nobody wants more.
pub type LongAnswer = BoxStream<'static, Result<Vec<u8>, AskError>>;

/// A piece on its way; `None` is the end.
type Piece = Result<Option<Vec<u8>>, AskError>;

/// The pieces up to the one that says that it is the last. What ends without was cut off.
pub fn up_to_its_end(pieces: impl Stream<Item = Piece> + Send + 'static) -> LongAnswer {
    let cut = stream::once(async { Err(AskError::Gone) });
    let whole = pieces.chain(cut).scan(false, |is_over, piece| {
        let next = match piece {
            _ if *is_over => None,
            Ok(None) => None,
            Ok(Some(body)) => Some(Ok(body)),
            Err(error) => {
                *is_over = true;
                Some(Err(error))
            }
        };
        std::future::ready(next)
    });
    whole.boxed()
}

/// What a message has for who asks.
pub fn of_message(piece: pb::AnswerPiece) -> Piece {
    match piece {
        pb::AnswerPiece { last: true, .. } => Ok(None),
        pb::AnswerPiece { body, error, .. } if error.is_empty() => Ok(Some(body)),
        pb::AnswerPiece { error, .. } => Err(AskError::Refused(error)),
    }
}

/// The questions to one node that are under way.
#[derive(Debug, Default)]
pub struct Inspections(Mutex<UnderWay>);

#[derive(Debug, Default)]
struct UnderWay {
    /// To the node; `None` until its agent has said that it takes questions.
    questions: Option<mpsc::Sender<pb::InspectionQuestion>>,
    waiting: BTreeMap<u64, oneshot::Sender<Result<Vec<u8>, String>>>,
    /// Who wait for long answers that have not begun.
    waiting_long: BTreeMap<u64, mpsc::Sender<Piece>>,
    next_id: u64,
    /// Ends the node's stream.
    stream: CancellationToken,
}

impl UnderWay {
    /// Sends a question; its id.
    fn send(&mut self, question: &str, long: bool) -> Result<u64, AskError> {
        let id = self.next_id;
        let questions = self.questions.as_ref().ok_or(AskError::Deaf)?;
        let question = pb::InspectionQuestion { id, question: question.to_owned(), long };
        questions.try_send(question).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AskError::Busy,
            mpsc::error::TrySendError::Closed(_) => AskError::Gone,
        })?;
        self.next_id += 1;
        Ok(id)
    }

    /// Who waits is told that no answer comes.
    fn forget(&mut self) {
        self.waiting.clear();
        for pieces in std::mem::take(&mut self.waiting_long).into_values() {
            // Nothing was sent in it, so that it has room; or nobody waits.
            let _ = pieces.try_send(Err(AskError::Gone));
        }
    }
}

/// A question under way; it is forgotten when its asker is.
struct Asked<'a> {
    of: &'a Inspections,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.of.lock().waiting.remove(&self.id);
    }
}

impl Inspections {
    /// What the node answers to `question`, within `limit`, which is cut to [`MAX_QUESTION_TIME`].
    pub async fn ask(&self, question: &str, limit: Duration) -> Result<Vec<u8>, AskError> {
        if question.len() > MAX_QUESTION_LEN {
            return Err(AskError::TooLong);
        }
        let limit = limit.min(MAX_QUESTION_TIME);
        let (asked, answered) = self.send(question)?;
        let answer = tokio::time::timeout(limit, answered).await.map_err(|_| AskError::Late(limit))?;
        drop(asked);
        answer.map_err(|_| AskError::Gone)?.map_err(AskError::Refused)
    }

    #[expect(clippy::type_complexity, reason = "a pair that is taken apart at once")]
    fn send(
        &self,
        question: &str,
    ) -> Result<(Asked<'_>, oneshot::Receiver<Result<Vec<u8>, String>>), AskError> {
        let mut under_way = self.lock();
        if under_way.waiting.len() >= MAX_QUESTIONS {
            return Err(AskError::Busy);
        }
        let id = under_way.send(question, false)?;
        let (sender, answered) = oneshot::channel();
        under_way.waiting.insert(id, sender);
        Ok((Asked { of: self, id }, answered))
    }

    /// What the node answers to `question` at length. What it refuses is the first piece.
    pub fn ask_long(&self, question: &str) -> Result<LongAnswer, AskError> {
        if question.len() > MAX_LONG_QUESTION_LEN {
            return Err(AskError::TooLong);
        }
        let mut under_way = self.lock();
        // Some have gone before their answer began.
        under_way.waiting_long.retain(|_, pieces| !pieces.is_closed());
        if under_way.waiting_long.len() >= MAX_LONG_ANSWERS {
            return Err(AskError::Busy);
        }
        let id = under_way.send(question, true)?;
        let (pieces, answer) = mpsc::channel(MAX_PIECES);
        under_way.waiting_long.insert(id, pieces);
        Ok(up_to_its_end(ReceiverStream::new(answer)))
    }

    /// Nobody waits for what has no such id: it came too late.
    fn answer(&self, answer: pb::InspectionAnswer) {
        let mut under_way = self.lock();
        if let Some(asker) = under_way.waiting.remove(&answer.id) {
            let outcome = if answer.error.is_empty() { Ok(answer.body) } else { Err(answer.error) };
            // Or just now.
            let _ = asker.send(outcome);
        } else if let Some(pieces) = under_way.waiting_long.remove(&answer.id) {
            let _ = pieces.try_send(Err(AskError::Refused(answer.error)));
        }
    }

    /// Gives who waits for the long answer `id` its pieces; returns when it ends, when nobody wants more, and with the session,
    /// which `closed` says.
    pub(super) async fn take_long(
        &self,
        id: u64,
        mut answer: Streaming<pb::AnswerPiece>,
        closed: &CancellationToken,
    ) {
        let Some(pieces) = self.lock().waiting_long.remove(&id) else { return };
        loop {
            let piece = tokio::select! {
                piece = answer.message() => piece,
                () = pieces.closed() => return,
                () = closed.cancelled() => Err(Status::aborted("the session ended")),
            };
            let piece = match piece {
                Ok(Some(piece)) => of_message(piece),
                Ok(None) | Err(_) => Err(AskError::Gone),
            };
            let is_end = !matches!(piece, Ok(Some(_)));
            let sent = tokio::select! {
                sent = pieces.send(piece) => sent,
                // Who reads finds no end, and knows that it was cut off.
                () = closed.cancelled() => return,
            };
            if sent.is_err() || is_end {
                return;
            }
        }
    }

    /// The node takes questions now, in a stream that `stream` ends. One that it had before ends.
    fn open(&self, stream: &CancellationToken) -> mpsc::Receiver<pb::InspectionQuestion> {
        let (sender, questions) = mpsc::channel(MAX_QUESTIONS + MAX_LONG_ANSWERS);
        let mut under_way = self.lock();
        under_way.questions = Some(sender);
        under_way.forget();
        std::mem::replace(&mut under_way.stream, stream.clone()).cancel();
        questions
    }

    /// The stream that `stream` ends has ended. If it is the node's newest, who waits is told.
    fn close(&self, stream: &CancellationToken) {
        stream.cancel();
        let mut under_way = self.lock();
        if under_way.stream.is_cancelled() {
            under_way.questions = None;
            under_way.forget();
        }
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the answers, and returns the stream of the questions. Both end with the session, and when another such stream is opened
/// in it.
pub(super) fn questions(
    session: Arc<Session>,
    answers: Streaming<pb::InspectionAnswer>,
) -> impl Stream<Item = Result<pb::InspectionQuestion, Status>> + Send {
    let closed = session.closed.child_token();
    let questions = session.inspections.open(&closed);
    tokio::spawn(take_answers(session, answers, closed.clone()));
    ReceiverStream::new(questions).map(Ok).take_until(closed.cancelled_owned())
}

async fn take_answers(
    session: Arc<Session>,
    mut answers: Streaming<pb::InspectionAnswer>,
    closed: CancellationToken,
) {
    let taking = async {
        while let Ok(Some(answer)) = answers.message().await {
            session.inspections.answer(answer);
        }
    };
    let _ = closed.run_until_cancelled(taking).await;
    session.inspections.close(&closed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(30);

    fn answer(id: u64, error: &str) -> pb::InspectionAnswer {
        pb::InspectionAnswer { session_id: String::new(), id, body: b"[]".to_vec(), error: error.to_owned() }
    }

    #[tokio::test]
    async fn answers_find_their_askers() {
        let inspections = Inspections::default();
        assert_eq!(inspections.ask("/mesh/lb", SOON).await, Err(AskError::Deaf));
        let mut questions = inspections.open(&CancellationToken::new());
        let node = async {
            let first = questions.recv().await.expect("a question");
            let second = questions.recv().await.expect("a question");
            assert_eq!((first.question.as_str(), second.question.as_str()), ("/mesh/lb", "/mesh/fdb"));
            inspections.answer(answer(second.id, "no maps"));
            inspections.answer(answer(77, ""));
            inspections.answer(answer(first.id, ""));
        };
        let (first, second, ()) =
            tokio::join!(inspections.ask("/mesh/lb", PATIENCE), inspections.ask("/mesh/fdb", PATIENCE), node);
        assert_eq!(first, Ok(b"[]".to_vec()));
        assert_eq!(second, Err(AskError::Refused("no maps".to_owned())));
    }

    #[tokio::test]
    async fn who_does_not_answer_is_not_waited_for() {
        let inspections = Inspections::default();
        let questions = inspections.open(&CancellationToken::new());
        for _ in 0..=MAX_QUESTIONS + MAX_LONG_ANSWERS {
            let asked = inspections.ask("/mesh/lb", Duration::from_millis(1)).await;
            // What was given up is forgotten; the queue to a node that reads nothing is what fills up.
            assert!(matches!(asked, Err(AskError::Late(_) | AskError::Busy)), "{asked:?}");
            assert!(inspections.lock().waiting.is_empty());
        }
        assert_eq!(inspections.ask("/mesh/lb", SOON).await, Err(AskError::Busy));
        drop(questions);
        assert_eq!(inspections.ask("/mesh/lb", SOON).await, Err(AskError::Gone));
        let long = "x".repeat(MAX_QUESTION_LEN + 1);
        assert_eq!(inspections.ask(&long, SOON).await, Err(AskError::TooLong));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_was_cut_off() {
        let body = |text: &str| Ok(Some(text.as_bytes().to_vec()));
        let taken = async |pieces: Vec<Piece>| up_to_its_end(stream::iter(pieces)).collect::<Vec<_>>().await;
        let [a, b] = ["a", "b"].map(|text| Ok(text.as_bytes().to_vec()));
        assert_eq!(taken(vec![body("a"), body("b"), Ok(None), body("c")]).await, [a.clone(), b.clone()]);
        assert_eq!(taken(vec![body("a")]).await, [a.clone(), Err(AskError::Gone)]);
        let refused = || Err(AskError::Refused("no".into()));
        assert_eq!(
            taken(vec![body("a"), refused(), body("c")]).await,
            [a, Err(AskError::Refused("no".into()))]
        );
    }

    #[tokio::test]
    async fn long_answers_are_refused_given_up_and_forgotten() {
        let inspections = Inspections::default();
        assert!(matches!(inspections.ask_long("/mesh/logs"), Err(AskError::Deaf)));
        let stream = CancellationToken::new();
        let mut questions = inspections.open(&stream);
        let mut refused = inspections.ask_long("/mesh/logs").expect("room");
        let asked = questions.recv().await.expect("a question");
        assert!(asked.long);
        inspections.answer(answer(asked.id, "no"));
        assert_eq!(refused.next().await, Some(Err(AskError::Refused("no".into()))));
        for _ in 0..2 * MAX_LONG_ANSWERS {
            drop(inspections.ask_long("/mesh/logs").expect("those that were given up are forgotten"));
            questions.recv().await.expect("a question");
        }
        let mut left = inspections.ask_long("/mesh/logs").expect("room");
        inspections.close(&stream);
        assert_eq!(left.next().await, Some(Err(AskError::Gone)));
        assert_eq!(left.next().await, None);
    }

    #[tokio::test]
    async fn a_session_that_ends_ends_the_wait() {
        let inspections = Inspections::default();
        let stream = CancellationToken::new();
        let mut questions = inspections.open(&stream);
        let end = async {
            questions.recv().await.expect("a question");
            inspections.close(&stream);
        };
        let (asked, ()) = tokio::join!(inspections.ask("/mesh/lb", PATIENCE), end);
        assert_eq!(asked, Err(AskError::Gone));
    }

    #[tokio::test]
    async fn a_newer_stream_ends_the_one_before_and_not_the_other_way_round() {
        let inspections = Inspections::default();
        let [first, second] = [CancellationToken::new(), CancellationToken::new()];
        let mut before = inspections.open(&first);
        let mut questions = inspections.open(&second);
        assert!(first.is_cancelled() && before.recv().await.is_none());
        inspections.close(&first);
        let node = async {
            let asked = questions.recv().await.expect("a question");
            inspections.answer(answer(asked.id, ""));
        };
        let (asked, ()) = tokio::join!(inspections.ask("/mesh/lb", PATIENCE), node);
        assert_eq!(asked, Ok(b"[]".to_vec()));
        inspections.close(&second);
        assert_eq!(inspections.ask("/mesh/lb", SOON).await, Err(AskError::Deaf));
    }
}
