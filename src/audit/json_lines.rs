//! Events as JSON, one a line, written by a thread of their own so that no request waits for a
//! disk.
//!
//! The queue is bounded. An event that finds it full, because the sink stands still, or that cannot
//! be written is counted as lost and a log line says so, because a lost event must not go
//! unnoticed. Refusals fill at most half of the queue.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::io::Write;
use std::iter;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use serde::Serialize;

use crate::audit::{Event, Outcome, Sink};
use crate::domain::caller::Action;
use crate::domain::key::{KeyId, ProjectId};
use crate::domain::request::{RequestId, Sequence};

/// How many events may wait to be written.
const QUEUE: usize = 16_384;

/// How many of them may be refusals. Anybody can be refused as often as they like, and must not
/// push out what was done.
const REFUSALS: usize = QUEUE / 2;

/// How long the thread rests when it has written all, unless so many events wait that it writes them
/// [`TOGETHER`]. Waking it for each of many refusals cost more than refusing them; but requests wait while it
/// writes on their core, so it must not come to write very many. What is lost with a machine is at most so
/// much older.
const REST: Duration = Duration::from_millis(10);

/// How long the end of the sink waits for what takes the lines: less than a pod has after its requests.
const LAST_WORDS: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// Writes events as JSON lines.
pub struct JsonLines {
    queue: Option<SyncSender<Entry>>,
    waiting: Arc<Waiting>,
    thread: Thread,
    writer: Mutex<Option<Writer>>,
    lost: Arc<Lost>,
}

/// The thread that writes.
struct Writer {
    thread: JoinHandle<()>,
    /// Has no sender any more once the thread has written everything.
    ended: Receiver<()>,
}

/// How many events wait in the queue.
#[derive(Default)]
struct Waiting {
    events: AtomicUsize,
    /// The refusals among them.
    refusals: AtomicUsize,
}

impl Waiting {
    /// Counts an event that was taken out of the queue, or never came into it.
    fn less(&self, is_refusal: bool) {
        self.events.fetch_sub(1, Ordering::Relaxed);
        if is_refusal {
            self.refusals.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// An event on its way.
struct Entry {
    line: String,
    is_refusal: bool,
}

impl JsonLines {
    /// Writes to `out`.
    pub fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, events) = sync_channel(QUEUE);
        let waiting = Arc::new(Waiting::default());
        let lost = Arc::new(Lost::default());
        let (end, ended) = sync_channel(0);
        let writer = thread::Builder::new().name("audit".to_owned()).spawn({
            let (waiting, lost) = (Arc::clone(&waiting), Arc::clone(&lost));
            move || {
                let _until_the_end = end;
                write(out, &events, &waiting, &lost);
            }
        })?;
        Ok(Self {
            queue: Some(queue),
            waiting,
            thread: writer.thread().clone(),
            writer: Mutex::new(Some(Writer {
                thread: writer,
                ended,
            })),
            lost,
        })
    }

    /// How many events were not kept.
    pub fn lost(&self) -> u64 {
        self.lost.count()
    }
}

impl Sink for JsonLines {
    fn record(&self, event: &Event<'_>) {
        let Some(queue) = &self.queue else { return };
        let is_refusal = matches!(event.outcome, Outcome::Refused(_));
        let refusals = &self.waiting.refusals;
        if is_refusal && refusals.fetch_add(1, Ordering::Relaxed) >= REFUSALS {
            refusals.fetch_sub(1, Ordering::Relaxed);
            return self.lost.add("too many refusals wait");
        }
        let entry = Entry {
            line: line(event),
            is_refusal,
        };
        let before = self.waiting.events.fetch_add(1, Ordering::Relaxed);
        if let Err(TrySendError::Full(entry) | TrySendError::Disconnected(entry)) =
            queue.try_send(entry)
        {
            self.waiting.less(entry.is_refusal);
            return self.lost.add("the queue is full");
        }
        if before + 1 == TOGETHER {
            self.thread.unpark();
        }
    }
}

impl Drop for JsonLines {
    /// Waits until what was recorded is written, or for as long as an end may take that what takes the lines holds
    /// up.
    fn drop(&mut self) {
        self.queue = None;
        let Some(writer) = self.writer.lock().ok().and_then(|mut writer| writer.take()) else {
            return;
        };
        if let Err(RecvTimeoutError::Timeout) = writer.ended.recv_timeout(LAST_WORDS) {
            let events = self.waiting.events.load(Ordering::Relaxed);
            tracing::error!(events, "the audit does not take what was recorded last");
            return;
        }
        let _ = writer.thread.join();
    }
}

impl fmt::Debug for JsonLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JsonLines")
    }
}

/// Writes every event, and returns when no more can come. What waits is written together: a call of the
/// system for each of many refusals cost about as much as refusing them.
fn write(mut out: impl Write, events: &Receiver<Entry>, all: &Waiting, lost: &Lost) {
    let mut torn = false;
    while let Ok(first) = events.recv() {
        let mut waiting = iter::once(first).chain(events.try_iter()).peekable();
        while waiting.peek().is_some() {
            let mut lines = Lines::default();
            while lines.ends.len() < TOGETHER
                && let Some(Entry { line, is_refusal }) = waiting.next()
            {
                all.less(is_refusal);
                lines.add(&line);
            }
            lines.write(&mut out, &mut torn, lost);
        }
        thread::park_timeout(REST);
    }
}

/// How many events are written together at most: a sink that stands still keeps so many besides the
/// queue.
const TOGETHER: usize = 64;

/// Events that are written together.
#[derive(Default)]
struct Lines {
    text: String,
    /// Where each of them ends.
    ends: VecDeque<usize>,
}

impl Lines {
    fn add(&mut self, line: &str) {
        self.text.push_str(line);
        self.ends.push_back(self.text.len());
    }

    /// Writes them. One that cannot be written takes no other with it: a part of it may have been
    /// written, and then it is `torn` and must not swallow the next.
    fn write(mut self, out: &mut impl Write, torn: &mut bool, lost: &Lost) {
        let mut at = 0;
        let mut begin = 0;
        while let Some(end) = self.ends.front().copied() {
            let rest = self.text.as_bytes().get(at..).unwrap_or_default();
            let written = if *torn {
                out.write(b"\n")
            } else {
                out.write(rest)
            };
            let error = match written {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(_) if *torn => {
                    *torn = false;
                    continue;
                }
                Ok(count) => {
                    at += count;
                    while let Some(end) = self.ends.front().copied().filter(|end| *end <= at) {
                        begin = end;
                        self.ends.pop_front();
                    }
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            lost.add(error);
            *torn |= at > begin;
            (at, begin) = (end, end);
            self.ends.pop_front();
        }
        if let Err(error) = out.flush() {
            lost.add(error);
        }
    }
}

/// Counts the events that were not kept.
#[derive(Default)]
struct Lost(AtomicU64);

impl Lost {
    fn add(&self, reason: impl fmt::Display) {
        let lost = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        // Once per power of two: a sink that stands still must not fill the log as well.
        if lost.is_power_of_two() {
            tracing::error!(lost, %reason, "events of the audit are lost");
        }
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// An event as it is written. Absent values are left out.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<&'a str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<&'a str>,
    time: i64,
}

/// An event as a line.
fn line(event: &Event<'_>) -> String {
    let (outcome, error_code) = match event.outcome {
        Outcome::Done => ("done", None),
        Outcome::Refused(code) => ("refused", Some(code)),
        Outcome::Cancelled => ("cancelled", None),
        Outcome::Destroyed => ("destroyed", None),
    };
    let request_id = event.request_id.map(RequestId::digits);
    let request_id = request_id.as_ref();
    let line = serde_json::to_string(&Line {
        action: event.action.map(Action::name),
        caller: event.caller.map(|caller| &*caller.name),
        error_code,
        key_id: event.key_id.as_ref().map(KeyId::as_str),
        outcome,
        project_id: event.project.map(ProjectId::as_str),
        request_id: request_id.and_then(|digits| str::from_utf8(digits).ok()),
        sequence: event.sequence.as_ref().map(Sequence::as_str),
        time: event.time.0,
    });
    // Texts and a number always have a JSON form.
    let mut line = line.unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::caller::{Action, Actions, Caller};
    use crate::domain::request::RequestId;
    use crate::domain::time::Timestamp;
    use serde_json::json;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    #[test]
    fn an_event_is_one_line_of_json() {
        let (sink, lines) = sink();
        let caller = Caller {
            name: "billing".into(),
            project: "p1".parse().unwrap(),
            roles: Arc::default(),
            actions: Actions::ALL,
        };
        sink.record(&Event {
            time: Timestamp(7),
            request_id: Some(RequestId::new(1)),
            sequence: Some("919c82d4-8046-4722-9094-35c3c6524cff".parse().unwrap()),
            caller: Some(&caller),
            project: Some(&caller.project),
            action: Some(Action::DisableKey),
            key_id: Some("0d0466b0-e727-4d9c-b35d-f84bb474a37f".parse().unwrap()),
            outcome: Outcome::Refused("KMS.1301"),
        });
        drop(sink);
        let line = String::from_utf8(lines.iter().flatten().collect()).unwrap();
        let expected = json!({
            "time": 7, "outcome": "refused", "error_code": "KMS.1301",
            "request_id": "00000000000000000000000000000001",
            "sequence": "919c82d4-8046-4722-9094-35c3c6524cff",
            "caller": "billing", "project_id": "p1", "action": "kms:cmk:disable",
            "key_id": "0d0466b0-e727-4d9c-b35d-f84bb474a37f",
        });
        assert!(line.ends_with('\n'));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&line).unwrap(),
            expected
        );
    }

    #[test]
    fn what_no_caller_asked_for_names_its_project() {
        let project = "p1".parse().unwrap();
        let line = line(&Event {
            project: Some(&project),
            outcome: Outcome::Destroyed,
            ..EMPTY
        });
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = json!({ "time": 0, "outcome": "destroyed", "project_id": "p1" });
        assert_eq!(line, expected);
    }

    #[test]
    fn what_was_recorded_is_written_before_the_sink_is_gone() {
        let (sink, lines) = sink();
        for _ in 0..1000 {
            sink.record(&EMPTY);
        }
        drop(sink);
        let text: Vec<u8> = lines.iter().flatten().collect();
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1000);
    }

    #[test]
    fn a_sink_that_stands_still_does_not_keep_the_program_from_its_end() {
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let sink = JsonLines::new(Stuck(Arc::clone(&gate))).unwrap();
        sink.record(&EMPTY);
        drop(sink);
        drop(closed);
    }

    #[test]
    fn a_sink_that_stands_still_holds_up_nobody_and_its_losses_are_counted() {
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let sink = JsonLines::new(Stuck(Arc::clone(&gate))).unwrap();
        for _ in 0..QUEUE + 100 {
            sink.record(&EMPTY);
        }
        let lost = sink.lost();
        // First of all, for a sink that is dropped waits for its writer.
        drop(closed);
        // The writer may have taken some out of the queue before it stood still.
        let most = 100;
        assert!((most - TOGETHER as u64..=most).contains(&lost), "{lost}");
    }

    #[test]
    fn refusals_leave_room_for_what_was_done_and_get_theirs_back() {
        let refusal = Event {
            outcome: Outcome::Refused("APIGW.0301"),
            ..EMPTY
        };
        let done = Event {
            outcome: Outcome::Done,
            ..EMPTY
        };
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let sink = JsonLines::new(Stuck(Arc::clone(&gate))).unwrap();
        for _ in 0..2 * QUEUE {
            sink.record(&refusal);
        }
        let lost = sink.lost();
        for _ in 0..QUEUE - REFUSALS {
            sink.record(&done);
        }
        let lost_then = sink.lost();
        // First of all, for a sink that is dropped waits for its writer.
        drop(closed);
        let half = (2 * QUEUE - REFUSALS) as u64;
        assert!((half - TOGETHER as u64..=half).contains(&lost), "{lost}");
        assert_eq!(lost_then, lost, "there is room for what was done");
        while sink.waiting.refusals.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        sink.record(&refusal);
        assert_eq!(sink.lost(), lost, "there is room for refusals again");
    }

    #[test]
    fn an_event_that_cannot_be_written_is_lost_and_takes_no_other_with_it() {
        /// A disk with room for `room` more bytes, until it is emptied.
        struct Disk {
            room: usize,
            written: Arc<Mutex<Vec<u8>>>,
        }
        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if self.room == 0 {
                    self.room = usize::MAX;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let fits = bytes.len().min(self.room);
                self.room -= fits;
                self.written.lock().unwrap().extend(&bytes[..fits]);
                Ok(fits)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = Arc::default();
        let (whole, torn) = (line(&EMPTY), 10);
        let sink = JsonLines::new(Disk {
            room: whole.len() + torn,
            written: Arc::clone(&written),
        });
        let sink = sink.unwrap();
        for _ in 0..3 {
            sink.record(&EMPTY);
        }
        let lost = Arc::clone(&sink.lost);
        drop(sink);
        let expected = format!("{whole}{}\n{whole}", &whole[..torn]);
        assert_eq!(written.lock().unwrap().as_slice(), expected.as_bytes());
        assert_eq!(lost.count(), 1);
    }

    const EMPTY: Event<'_> = Event {
        time: Timestamp(0),
        request_id: None,
        sequence: None,
        caller: None,
        project: None,
        action: None,
        key_id: None,
        outcome: Outcome::Cancelled,
    };

    /// Stands still while the gate is closed.
    struct Stuck(Arc<Mutex<()>>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _wait = self.0.lock();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Pipe(Sender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn sink() -> (JsonLines, Receiver<Vec<u8>>) {
        let (to, from) = channel();
        (JsonLines::new(Pipe(to)).unwrap(), from)
    }
}
