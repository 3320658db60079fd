//! What containers have written: conmon's `k8s-file`, one record per line of `<time> stdout|stderr F|P <text>`, read from any
//! line on and followed over the moment in which conmon begins the file anew.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::time::Duration;

use control_model::{OutputLine, OutputPiece, OutputPosition, OutputQuery, OutputStream, Timestamp};
use tokio::sync::mpsc;

use super::Oci;
use super::log_files::{LogFile, LogFiles};

/// Read at a time: what a client that does not read holds in memory is a few of these.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces on their way.
const MAX_PIECES: usize = 4;
/// Between two looks for what was written since. What is being read stays open when conmon begins the next file, and the former one
/// is kept: lines are missed only if it begins three before they are read.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Why there is nothing to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    #[error("there is no such container")]
    Unknown,
    #[error("configured logging driver does not support reading")]
    NotKept,
}

/// What one container has written. Ends with the query, or behind an error; who drops it ends the reading.
pub type OutputPieces = mpsc::Receiver<io::Result<OutputPiece>>;

impl Oci {
    /// The lines that the container with this id has written. Needs a tokio runtime.
    pub fn output(&self, container_id: &str, query: OutputQuery) -> Result<OutputPieces, OutputError> {
        let info = self.list_containers().into_iter().find(|one| one.record.container_id == container_id);
        let info = info.ok_or(OutputError::Unknown)?;
        if info.record.log.logging().is_ok_and(|logging| logging.kept_bytes.is_none()) {
            return Err(OutputError::NotKept);
        }
        let (pieces, lines) = mpsc::channel(MAX_PIECES);
        let (oci, task) = (self.clone(), info.record.task);
        let is_over = move || oci.container(task).is_none_or(|container| container.record().ended.is_some());
        tokio::spawn(async move {
            if let Err(error) = send(&LogFiles::new(&info.log), &query, is_over, &pieces).await {
                // Who reads no more needs no reason.
                let _ = pieces.send(Err(error)).await;
            }
        });
        Ok(lines)
    }
}

/// Sends what `query` wants; returns when that is all, or nobody takes it any more.
async fn send(
    log: &LogFiles,
    query: &OutputQuery,
    is_over: impl Fn() -> bool,
    pieces: &mpsc::Sender<io::Result<OutputPiece>>,
) -> io::Result<()> {
    let (mut file, mut is_first) = (None, true);
    loop {
        // What was written before the end is there when the end is known.
        let is_last_look = !query.follow || is_over();
        let (back, lines) = in_background(file, log, query).await?;
        file = back;
        let is_end = lines.is_empty();
        let is_past = |line: &OutputLine| query.until.is_some_and(|until| line.at > until);
        let is_behind = lines.last().is_some_and(is_past);
        let wanted: Vec<OutputLine> = lines.into_iter().filter(|line| query.wants(line)).collect();
        // Who has a position goes on there, also if there was no line.
        if let Some(file) = file.as_ref().filter(|_| is_first || !wanted.is_empty()) {
            is_first = false;
            let piece = OutputPiece { lines: wanted, upto: file.position() };
            if pieces.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
        }
        if (is_end && is_last_look) || is_behind {
            return Ok(());
        }
        if is_end {
            tokio::select! {
                () = pieces.closed() => return Ok(()),
                () = tokio::time::sleep(LOOK_PERIOD) => {}
            }
        }
    }
}

/// Opens the file if there is none yet, and reads on. Of a container that has not begun there is none to open.
async fn in_background(
    file: Option<OpenLog>,
    files: &LogFiles,
    query: &OutputQuery,
) -> io::Result<(Option<OpenLog>, Vec<OutputLine>)> {
    let (files, query) = (files.clone(), query.clone());
    let read = tokio::task::spawn_blocking(move || {
        let mut file = match file {
            Some(file) => file,
            None => match OpenLog::open(files, &query)? {
                Some(file) => file,
                None => return Ok((None, Vec::new())),
            },
        };
        let lines = file.read()?;
        Ok((Some(file), lines))
    });
    read.await.map_err(io::Error::other)?
}

/// An open log.
#[derive(Debug)]
struct OpenLog {
    files: LogFiles,
    /// That which is read.
    file: File,
    id: u64,
    /// Of its bytes.
    n_read: u64,
    /// The beginning of a record whose end was not written yet.
    begun: Vec<u8>,
    /// Bytes that are still to be read of what was there when it was opened; `None` follows what is written since.
    left: Option<u64>,
}

impl OpenLog {
    /// Opens it where `query` begins: behind what was read before, at the last lines, or at the beginning of what is kept. Who does
    /// not follow reads what is there now, and nothing else: of a container that goes on writing there would be no end.
    fn open(files: LogFiles, query: &OutputQuery) -> io::Result<Option<Self>> {
        let mut all = files.open()?;
        if all.is_empty() {
            return Ok(None);
        }
        let is_there = |after: &OutputPosition| {
            let at = all.iter().position(|one| one.id == after.file && after.offset <= one.len)?;
            Some((at, after.offset))
        };
        let (at, start) = match (&query.after, query.tail) {
            (Some(after), _) => is_there(after).unwrap_or((0, 0)),
            (None, Some(tail)) => start_of_last(&all, tail)?,
            (None, None) => (0, 0),
        };
        let n_bytes: u64 = all[at..].iter().map(|one| one.len).sum();
        let left = (!query.follow).then(|| n_bytes.saturating_sub(start));
        let LogFile { mut file, id, .. } = all.swap_remove(at);
        file.seek(SeekFrom::Start(start))?;
        Ok(Some(Self { files, file, id, n_read: start, begun: Vec::new(), left }))
    }

    /// Behind the last line that was given.
    fn position(&self) -> OutputPosition {
        OutputPosition { file: self.id, offset: self.n_read - self.begun.len() as u64 }
    }

    /// The next lines; none if no more are there now.
    fn read(&mut self) -> io::Result<Vec<OutputLine>> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let mut n_read = self.fill(&mut piece)?;
            if n_read == 0 {
                if self.left == Some(0) {
                    return Ok(Vec::new());
                }
                let Some(next) = self.files.behind(self.id)? else { return Ok(Vec::new()) };
                // What conmon wrote between the two looks, before it began the next one.
                n_read = self.fill(&mut piece)?;
                if n_read == 0 {
                    (self.file, self.id, self.n_read) = (next.file, next.id, 0);
                    self.begun.clear();
                    continue;
                }
            }
            self.begun.extend_from_slice(&piece[..n_read]);
            let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') else { continue };
            let lines: Vec<OutputLine> =
                self.begun[..end].split(|byte| *byte == b'\n').filter_map(parse).collect();
            self.begun.drain(..=end);
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    fn fill(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let left = self.left.map_or(piece.len(), |left| usize::try_from(left).unwrap_or(usize::MAX));
        let n_wanted = piece.len().min(left);
        let n_read = self.file.read(&mut piece[..n_wanted])?;
        self.n_read += n_read as u64;
        self.left = self.left.map(|left| left - n_read as u64);
        Ok(n_read)
    }
}

/// In which file, and where there, the last `n` lines begin of what was there when they were opened: others may be written
/// meanwhile.
fn start_of_last(files: &[LogFile], n: usize) -> io::Result<(usize, u64)> {
    let (mut wanted, mut begin) = (n, (0, 0));
    for (at, file) in files.iter().enumerate().rev() {
        let (start, n_found) = last_lines(&file.file, file.len, wanted)?;
        begin = (at, start);
        wanted -= n_found;
        if wanted == 0 {
            break;
        }
    }
    Ok(begin)
}

/// Where the last `n` lines of the first `end` bytes begin, and how many there are. Parts of a long line are one.
fn last_lines(file: &File, end: u64, n: usize) -> io::Result<(u64, usize)> {
    let mut reader = BufReader::with_capacity(PIECE_BYTES, file.take(end));
    let mut starts = VecDeque::new();
    let (mut at, mut is_start) = (0, true);
    let mut record = Vec::new();
    loop {
        record.clear();
        let n_read = reader.read_until(b'\n', &mut record)?;
        // What is being written is no line yet.
        if !record.ends_with(b"\n") {
            break;
        }
        if is_start {
            starts.push_back(at);
            if starts.len() > n {
                starts.pop_front();
            }
        }
        is_start = !is_part(&record);
        at += n_read as u64;
    }
    Ok((starts.front().copied().unwrap_or(at), starts.len()))
}

fn is_part(record: &[u8]) -> bool {
    record.splitn(4, |byte| *byte == b' ').nth(2) == Some(b"P")
}

/// `None` if it is no record.
fn parse(record: &[u8]) -> Option<OutputLine> {
    let mut parts = record.splitn(4, |byte| *byte == b' ');
    let at: jiff::Timestamp = str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => OutputStream::Stdout,
        b"stderr" => OutputStream::Stderr,
        _ => return None,
    };
    let is_whole = parts.next()? == b"F";
    let mut text = parts.next()?.to_vec();
    if is_whole {
        text.push(b'\n');
    }
    Some(OutputLine { at: Timestamp(i64::try_from(at.as_nanosecond()).ok()?), stream, text })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::Path;

    use super::*;

    const ALL: OutputQuery = OutputQuery {
        stdout: true,
        stderr: true,
        since: None,
        until: None,
        after: None,
        tail: None,
        follow: false,
    };

    fn record(second: u32, rest: &str) -> String {
        format!("2026-11-23T01:00:{second:02}.000000001+01:00 {rest}\n")
    }

    fn texts(lines: &[OutputLine]) -> String {
        lines.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect()
    }

    fn at(second: i64) -> Timestamp {
        let hour: jiff::Timestamp = "2026-11-23T00:00:00.000000001Z".parse().unwrap();
        Timestamp(i64::try_from(hour.as_nanosecond()).unwrap() + second * 1_000_000_000)
    }

    /// All that is sent.
    async fn asked(log: &Path, query: &OutputQuery) -> String {
        asked_upto(log, query).await.0
    }

    /// All that is sent, and where that ends.
    async fn asked_upto(log: &Path, query: &OutputQuery) -> (String, Option<OutputPosition>) {
        let (pieces, mut lines) = mpsc::channel(MAX_PIECES);
        let reading = async move {
            send(&LogFiles::new(log), query, || true, &pieces).await.unwrap();
        };
        let taking = async {
            let (mut all, mut upto) = (String::new(), None);
            while let Some(piece) = lines.recv().await {
                let piece = piece.unwrap();
                all.push_str(&texts(&piece.lines));
                upto = Some(piece.upto);
            }
            (all, upto)
        };
        tokio::join!(reading, taking).1
    }

    #[test]
    fn records_are_read() {
        let line = parse(record(7, "stderr F two words ").trim_end_matches('\n').as_bytes()).unwrap();
        assert_eq!(
            (line.at, line.stream, line.text),
            (at(7), OutputStream::Stderr, b"two words \n".to_vec())
        );
        let part = parse(record(7, "stdout P \u{1b}[1m").trim_end_matches('\n').as_bytes()).unwrap();
        assert_eq!((part.stream, part.text), (OutputStream::Stdout, b"\x1b[1m".to_vec()));
        let empty = parse(record(7, "stdout F ").trim_end_matches('\n').as_bytes()).unwrap();
        assert_eq!(empty.text, b"\n");
        for none in
            ["", "x", "2026-11-23T01:00:00Z stdout", "then stdout F x", "2026-11-23T01:00:00Z out F x"]
        {
            assert_eq!(parse(none.as_bytes()), None, "{none}");
        }
    }

    #[tokio::test]
    async fn the_last_lines_by_time_and_stream() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(asked(&log, &ALL).await, "", "a container that has not begun");
        let records = [
            record(1, "stdout F one"),
            record(2, "stderr F two"),
            record(3, "stdout P thr"),
            record(4, "stdout P e"),
            record(5, "stdout F e"),
            record(6, "stderr F four"),
        ];
        fs::write(&log, records.concat()).unwrap();
        for (query, expected) in [
            (ALL, "one\ntwo\nthree\nfour\n"),
            (OutputQuery { tail: Some(0), ..ALL }, ""),
            (OutputQuery { tail: Some(2), ..ALL }, "three\nfour\n"),
            (OutputQuery { tail: Some(9), ..ALL }, "one\ntwo\nthree\nfour\n"),
            (OutputQuery { stderr: false, ..ALL }, "one\nthree\n"),
            (OutputQuery { stdout: false, tail: Some(1), ..ALL }, "four\n"),
            (OutputQuery { since: Some(at(4)), ..ALL }, "ee\nfour\n"),
            (OutputQuery { until: Some(at(2)), ..ALL }, "one\ntwo\n"),
        ] {
            assert_eq!(asked(&log, &query).await, expected, "{query:?}");
        }
        let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
        file.write_all(record(7, "stdout P begun").as_bytes()).unwrap();
        assert_eq!(asked(&log, &OutputQuery { tail: Some(1), ..ALL }).await, "begun");
    }

    #[tokio::test]
    async fn who_goes_on_gets_what_is_behind() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        // The half of a record is not read yet.
        let last = record(1, "stdout F three");
        fs::write(&log, [record(1, "stdout F one"), record(1, "stdout F two"), last[..9].into()].concat())
            .unwrap();
        let (text, upto) = asked_upto(&log, &OutputQuery { tail: Some(1), ..ALL }).await;
        assert_eq!(text, "two\n");
        let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
        file.write_all(&last.as_bytes()[9..]).unwrap();
        let behind = OutputQuery { after: upto, tail: Some(0), ..ALL };
        let (text, upto) = asked_upto(&log, &behind).await;
        assert_eq!(text, "three\n");
        assert_eq!(asked_upto(&log, &OutputQuery { after: upto, ..ALL }).await, (String::new(), upto));
        // The same name, and another file.
        begin_anew(&log, &record(2, "stdout F four"));
        assert_eq!(asked(&log, &OutputQuery { after: upto, ..ALL }).await, "four\n");
    }

    /// As conmon does it.
    fn begin_anew(log: &Path, text: &str) {
        let next = log.with_extension("tmp");
        fs::write(&next, text).unwrap();
        fs::rename(&next, log).unwrap();
    }

    #[tokio::test]
    async fn the_former_file_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let files = LogFiles::new(&log);
        fs::write(&log, [record(1, "stdout F one"), record(1, "stdout F two")].concat()).unwrap();
        files.keep().unwrap();
        begin_anew(&log, &record(1, "stdout F three"));
        assert_eq!(asked(&log, &ALL).await, "one\ntwo\nthree\n");
        for (tail, expected) in [(0, ""), (1, "three\n"), (2, "two\nthree\n"), (9, "one\ntwo\nthree\n")] {
            assert_eq!(asked(&log, &OutputQuery { tail: Some(tail), ..ALL }).await, expected);
        }
        // One that reads goes through all of them, from wherever it is.
        let (_, first) = asked_upto(&log, &OutputQuery { until: Some(at(0)), ..ALL }).await;
        let mut reading =
            OpenLog::open(files.clone(), &OutputQuery { follow: true, ..ALL }).unwrap().unwrap();
        assert_eq!(texts(&reading.read().unwrap()), "one\ntwo\n");
        begin_anew(&log, &record(1, "stdout F four"));
        files.keep().unwrap();
        assert_eq!(texts(&reading.read().unwrap()), "three\n");
        assert_eq!(texts(&reading.read().unwrap()), "four\n");
        assert!(reading.read().unwrap().is_empty());
        // Who comes back from a file that is gone gets what is kept.
        assert_eq!(asked(&log, &OutputQuery { after: first, ..ALL }).await, "three\nfour\n");
    }

    /// A thousand lines while the file is begun anew again and again: each comes once, in order.
    #[tokio::test]
    async fn no_line_is_missed_when_the_file_begins_anew() {
        const N_LINES: usize = 1_000;
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let (pieces, mut lines) = mpsc::channel(MAX_PIECES);
        let is_over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (path, over) = (log.clone(), is_over.clone());
        let reading = tokio::spawn(async move {
            let query = OutputQuery { follow: true, ..ALL };
            send(&LogFiles::new(&path), &query, || over.load(std::sync::atomic::Ordering::SeqCst), &pieces)
                .await
        });
        let mut all = String::new();
        for number in 0..N_LINES {
            if number % 100 == 0 {
                begin_anew(&log, "");
            }
            let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
            // In two writes, as a full disk or a signal would have it.
            let record = record(1, &format!("stdout F line {number}"));
            let (begin, rest) = record.split_at(20);
            file.write_all(begin.as_bytes()).unwrap();
            file.write_all(rest.as_bytes()).unwrap();
            // Files follow each other no faster than they are looked at.
            while number % 100 == 99 && !all.ends_with(&format!("line {number}\n")) {
                all.push_str(&texts(&lines.recv().await.unwrap().unwrap().lines));
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::SeqCst);
        while let Some(piece) = lines.recv().await {
            all.push_str(&texts(&piece.unwrap().lines));
        }
        reading.await.unwrap().unwrap();
        let expected: Vec<String> = (0..N_LINES).map(|number| format!("line {number}")).collect();
        assert_eq!(all.lines().collect::<Vec<_>>(), expected);
    }

    /// Of a container that never stops writing.
    #[tokio::test]
    async fn who_does_not_follow_gets_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, record(1, "stdout F first").repeat(10_000)).unwrap();
        let mut opened = OpenLog::open(LogFiles::new(&log), &ALL).unwrap().unwrap();
        let mut n_lines = 0;
        loop {
            let lines = opened.read().unwrap();
            if lines.is_empty() {
                break;
            }
            n_lines += lines.len();
            let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
            file.write_all(record(2, "stdout F more").repeat(5_000).as_bytes()).unwrap();
        }
        assert_eq!(n_lines, 10_000);
    }

    /// Lines that come while the last ones are looked for are not of them.
    #[test]
    fn the_last_lines_are_those_of_the_moment_of_asking() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let line = record(1, "stdout F line");
        fs::write(&log, line.repeat(10)).unwrap();
        let length = line.len() as u64;
        let start = |end, n| last_lines(&File::open(&log).unwrap(), end, n).unwrap().0;
        assert_eq!(start(6 * length, 2), 4 * length);
        assert_eq!(start(10 * length, 2), 8 * length);
        assert_eq!(start(6 * length, 0), 6 * length);
    }

    #[tokio::test]
    async fn a_reader_that_goes_ends_the_reading() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "").unwrap();
        let (pieces, lines) = mpsc::channel(MAX_PIECES);
        let reading = tokio::spawn(async move {
            send(&LogFiles::new(&log), &OutputQuery { follow: true, ..ALL }, || false, &pieces).await
        });
        drop(lines);
        reading.await.unwrap().unwrap();
    }
}
