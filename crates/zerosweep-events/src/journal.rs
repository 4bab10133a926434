//! The buffer that threads put their events into.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Instant;

use zerosweep::{Domain, Event};

use crate::note::{Detail, Note, notes};

/// The thread that empties a journal is called when this many notes are there, or when half of the
/// room is taken.
const URGENT: usize = 1 << 15;

/// Notes that were added since the journal was last emptied.
pub struct Batch {
    notes: Vec<(u64, Note)>,
    lost: u64,
    lost_since_ns: u64,
}

impl Batch {
    /// Returns a batch with room for `notes` notes. It never allocates more.
    #[must_use]
    pub fn with_capacity(notes: usize) -> Self {
        Self { notes: Vec::with_capacity(notes), lost: 0, lost_since_ns: 0 }
    }

    /// Returns the notes in order, each with its time in ns.
    #[must_use]
    pub fn notes(&self) -> &[(u64, Note)] {
        &self.notes
    }

    /// Returns how many notes did not fit after these, and the time of the first one, in ns.
    #[must_use]
    pub fn lost(&self) -> Option<(u64, u64)> {
        (self.lost > 0).then_some((self.lost, self.lost_since_ns))
    }

    /// Adds a note. After a note that did not fit, no other is added: the gap is in one place.
    fn push(&mut self, time_ns: u64, note: Note) {
        if self.lost == 0 && self.notes.len() < self.notes.capacity() {
            self.notes.push((time_ns, note));
            return;
        }
        if self.lost == 0 {
            self.lost_since_ns = time_ns;
        }
        self.lost += 1;
    }

    /// Forgets the notes, and gives their memory back if they were many.
    pub(crate) fn give_back(&mut self) {
        if self.notes.len() > 2 * URGENT {
            self.notes = Vec::with_capacity(self.notes.capacity());
        }
    }

    fn clear(&mut self) {
        self.notes.clear();
        (self.lost, self.lost_since_ns) = (0, 0);
    }
}

/// Notes of many threads, in order. A note is added under the domain's lock, so that it describes
/// the domain at that moment. The journal's own lock is taken after the domain's, and is held only
/// while a note is copied.
pub struct Journal {
    began: Instant,
    detail: Detail,
    open: AtomicBool,
    batch: Mutex<Batch>,
    /// The thread that empties it.
    reader: OnceLock<Thread>,
}

impl Journal {
    /// Returns a journal with room for `capacity` notes. No thread empties it yet.
    #[must_use]
    pub fn new(capacity: usize, detail: Detail) -> Self {
        Self {
            began: Instant::now(),
            detail,
            open: AtomicBool::new(true),
            batch: Mutex::new(Batch::with_capacity(capacity)),
            reader: OnceLock::new(),
        }
    }

    /// Adds the notes of an event. Never waits for the thread that empties the journal. Allocates
    /// nothing.
    pub fn record(&self, event: Event, domain: &Domain) {
        let left_out = matches!(event, Event::Checked { .. }) && self.detail == Detail::Xen;
        if left_out || !self.open.load(Ordering::Relaxed) {
            return;
        }
        let mut batch = self.lock();
        let before = batch.notes.len();
        // Taken under the lock: the times of notes rise.
        let time_ns = self.now_ns();
        notes(event, domain, self.detail, |note| batch.push(time_ns, note));
        let urgent = URGENT.min(batch.notes.capacity() / 2);
        let is_urgent = before < urgent && batch.notes.len() >= urgent;
        drop(batch);
        if is_urgent && let Some(reader) = self.reader.get() {
            reader.unpark();
        }
    }

    /// Swaps all notes with `spare`, which is cleared first and takes the next notes.
    pub fn take(&self, spare: &mut Batch) {
        spare.clear();
        std::mem::swap(&mut *self.lock(), spare);
    }

    /// Ends the journal: no more notes are added.
    pub fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// Returns the time since the journal began, in ns; never 0.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// Makes the journal wake the calling thread when it fills up.
    pub(crate) fn call_me(&self) {
        let _ = self.reader.set(std::thread::current());
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
