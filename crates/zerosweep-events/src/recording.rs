//! A journal, and the file that it is emptied into.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::journal::{Batch, Journal};
use crate::note::Detail;
use crate::writer::{Packing, Writer};

/// Notes that a journal has room for: a balloon that gives back as fast as it can fills it in about
/// a second. A thread of a busy host may wait that long for a processor. The memory, 40 bytes a
/// note, is taken only while the writing thread is late.
const CAPACITY: usize = 1 << 20;
/// The longest time between two writes. A journal that fills up is written at once.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long the end of a recording may wait for a write that is under way.
const ENDING: Duration = Duration::from_secs(2);

/// The state of a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Records that were written.
    pub records: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Records that are missing because they came too fast.
    pub lost: u64,
    /// Why nothing is written any more.
    pub error: Option<String>,
}

/// Records the events of a guest. A thread must call [`Recording::run`].
pub struct Recording {
    journal: Arc<Journal>,
    desk: Mutex<Desk>,
    /// Not part of the desk, which is locked while a write is under way.
    figures: Mutex<Figures>,
    ended: AtomicBool,
}

struct Desk {
    writer: Writer<File>,
    spare: Batch,
}

impl Recording {
    /// Begins a recording of a guest with `max_pages` promised pages. `file` must be empty and open
    /// for writing.
    #[must_use]
    pub fn new(file: File, max_pages: u64, detail: Detail, packing: Packing) -> Self {
        let journal = Arc::new(Journal::new(CAPACITY, detail));
        let writer = Writer::begin_packed(file, packing, journal.now_ns(), max_pages);
        let desk = Mutex::new(Desk { writer, spare: Batch::with_capacity(CAPACITY) });
        let (figures, ended) = (Mutex::default(), AtomicBool::new(false));
        Self { journal, desk, figures, ended }
    }

    /// Returns the journal that takes the events.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Returns the state of the recording.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes the events as they come, until the recording is ended or writing fails. After a
    /// failure the file is cut behind its last whole record, and no more events are recorded.
    pub fn run(&self) {
        self.journal.call_me();
        while !self.ended.load(Ordering::Acquire) {
            std::thread::park_timeout(INTERVAL);
            let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            self.settle(&mut desk, |desk, journal| desk.empty(journal));
        }
    }

    /// Writes the events that are left and ends the recording. Waits for a write that is under way,
    /// for a limited time.
    pub fn finish(&self) {
        self.journal.close();
        let Some(mut desk) = self.desk_within(ENDING) else { return };
        if !self.ended.load(Ordering::Acquire) {
            self.settle(&mut desk, |desk, journal| {
                desk.empty(journal)?;
                desk.writer.finish(journal.now_ns())
            });
            self.ended.store(true, Ordering::Release);
        }
    }

    fn desk_within(&self, limit: Duration) -> Option<MutexGuard<'_, Desk>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.desk.try_lock() {
                Ok(desk) => return Some(desk),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return None,
            }
        }
    }

    /// Does some writing; a failure ends the recording.
    fn settle(&self, desk: &mut Desk, work: impl FnOnce(&mut Desk, &Journal) -> io::Result<()>) {
        let done = work(desk, &self.journal);
        let lost = desk.spare.lost().map_or(0, |(count, _)| count);
        if done.is_err() {
            self.journal.close();
            self.ended.store(true, Ordering::Release);
            // A file ends with a whole record; where it cannot be cut, a reader tells.
            let good = desk.writer.written();
            let _ = desk.writer.get_mut().set_len(good);
        }
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.records = desk.writer.records();
        figures.bytes = desk.writer.written();
        figures.lost += lost;
        figures.error = done.err().map(|error| error.to_string());
    }
}

impl Desk {
    fn empty(&mut self, journal: &Journal) -> io::Result<()> {
        journal.take(&mut self.spare);
        for (time_ns, note) in self.spare.notes() {
            self.writer.note(*time_ns, note)?;
        }
        if let Some((count, since_ns)) = self.spare.lost() {
            self.writer.lost(journal.now_ns(), count, since_ns);
        }
        self.spare.give_back();
        self.writer.flush()
    }
}
