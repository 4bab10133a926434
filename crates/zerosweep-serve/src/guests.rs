//! All guests, and one poller for each that somebody watches.
//!
//! ```text
//! viewer ─┐                    ┌─ poller of vm1 ── poll ── agent
//! viewer ─┼─ Watch ── watch::  ┤
//! scrape ─┘          channel   └─ poller of vm2 ── poll ── agent
//! ```
//!
//! A poller starts with the first [`Watch`] and ends with the last. It polls at the quickest pace
//! that any of them wants. A slow agent is asked less often, so that its answers take at most a
//! third of one CPU's time.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};
use zerosweep_client::agent::Link;
use zerosweep_client::error::Failure;
use zerosweep_client::runtime::{self, GuestFiles};

use zerosweep_client::poll::{AGENT_TIMEOUT, Detail, PollError, Sample, poll};

/// A first poll takes at most a connect, a hello and an answer.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// The pause after a poll, in multiples of the poll's duration.
const REST: u32 = 2;
/// Samples of a guest that are kept: ten minutes, one a second.
const HISTORY: usize = 600;
const SAMPLE_INTERVAL_MS: u64 = 1000;

/// How closely a guest is watched, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pace {
    /// The figures, once a second: a scrape, or one answer.
    Figures,
    /// With the map, once a second.
    Overview,
    /// With the map, at least ten times a second.
    Live,
}

impl Pace {
    const ALL: [Self; 3] = [Self::Live, Self::Overview, Self::Figures];

    fn interval(self) -> Duration {
        match self {
            Self::Figures | Self::Overview => Duration::from_secs(1),
            Self::Live => Duration::from_millis(80),
        }
    }

    fn detail(self) -> Detail {
        match self {
            Self::Figures => Detail::Figures,
            Self::Overview | Self::Live => Detail::Map,
        }
    }
}

/// What the last poll gave.
pub(crate) type View = Arc<Result<Sample, PollError>>;

/// A point of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Point {
    /// Milliseconds since 1970.
    at_ms: u64,
    total_bytes: u64,
    populated_bytes: u64,
    cache_bytes: u64,
    entries_bytes: u64,
    target_bytes: u64,
}

/// All guests of this user.
#[derive(Debug)]
pub(crate) struct Guests {
    directories: Vec<PathBuf>,
    known: Mutex<BTreeMap<String, Arc<Guest>>>,
}

/// One guest, watched or not.
#[derive(Debug)]
struct Guest {
    files: GuestFiles,
    watched: Mutex<Watched>,
    /// Notified when a watch begins or ends.
    changed: Notify,
    views: watch::Sender<Option<View>>,
    history: Mutex<History>,
    work: Arc<AsyncMutex<()>>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Number of watches at each [`Pace`].
    watches: [usize; 3],
    has_poller: bool,
}

#[derive(Debug, Default)]
struct History {
    /// The VMM: a new one may have an old name.
    pid: u32,
    samples: VecDeque<Point>,
}

impl Guests {
    /// The guests that have their sockets in `directories`. An earlier directory hides a guest of
    /// the same name in a later one.
    pub(crate) fn new(directories: Vec<PathBuf>) -> Arc<Self> {
        Arc::new(Self { directories, known: Mutex::default() })
    }

    /// The names of all guests that have a socket. Forgets all other guests.
    pub(crate) async fn names(&self) -> Result<Vec<String>, Failure> {
        let directories = self.directories.clone();
        let guests = spawn_blocking(move || runtime::every_guest_in(&directories)).await;
        let guests = guests.map_err(Failure::work)??;
        let names: Vec<String> = guests.into_iter().map(|(name, _)| name).collect();
        lock(&self.known).retain(|name, guest| {
            names.binary_search(name).is_ok() || lock(&guest.watched).has_poller
        });
        Ok(names)
    }

    /// Watches a guest until the [`Watch`] is dropped. `None`: no guest has that name.
    pub(crate) fn watch(&self, name: &str, pace: Pace) -> Option<Watch> {
        Some(Guest::watch(self.guest(name)?, pace))
    }

    /// A guest's files; `None`: no guest has that name.
    pub(crate) fn files(&self, name: &str) -> Option<GuestFiles> {
        Some(self.guest(name)?.files.clone())
    }

    /// The permit for long work by a guest's agent; one at a time. `None`: it is taken.
    pub(crate) fn begin_work(&self, name: &str) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.guest(name)?.work).try_lock_owned().ok()
    }

    fn guest(&self, name: &str) -> Option<Arc<Guest>> {
        let mut known = lock(&self.known);
        if let Some(guest) = known.get(name) {
            return Some(Arc::clone(guest));
        }
        let files = runtime::find_in(&self.directories, name).ok()?;
        files.socket.exists().then_some(())?;
        let guest = Arc::new(Guest::new(files));
        known.insert(name.to_owned(), Arc::clone(&guest));
        Some(guest)
    }

    /// The timeline of a guest, from when somebody watched it.
    pub(crate) fn history(&self, name: &str) -> Vec<Point> {
        let guest = lock(&self.known).get(name).cloned();
        guest.map_or_else(Vec::new, |guest| lock(&guest.history).samples.iter().copied().collect())
    }
}

impl Guest {
    fn new(files: GuestFiles) -> Self {
        Self {
            files,
            watched: Mutex::default(),
            changed: Notify::new(),
            views: watch::Sender::new(None),
            history: Mutex::default(),
            work: Arc::default(),
        }
    }

    fn watch(guest: Arc<Self>, pace: Pace) -> Watch {
        let views = guest.views.subscribe();
        let mut watched = lock(&guest.watched);
        watched.watches[pace as usize] += 1;
        if std::mem::replace(&mut watched.has_poller, true) {
            guest.changed.notify_one()
        } else {
            drop(tokio::spawn(keep_polling(Arc::clone(&guest))))
        }
        drop(watched);
        Watch { guest, pace, views }
    }

    /// The quickest pace of all watches.
    fn pace(&self) -> Option<Pace> {
        let watched = lock(&self.watched);
        Pace::ALL.into_iter().find(|&pace| watched.watches[pace as usize] > 0)
    }

    /// Like [`pace`](Self::pace). When nobody watches, the poller has to end.
    fn pace_or_end(&self) -> Option<Pace> {
        let mut watched = lock(&self.watched);
        let pace = Pace::ALL.into_iter().find(|&pace| watched.watches[pace as usize] > 0);
        if pace.is_none() {
            watched.has_poller = false;
            // The last view is out of date when somebody watches again.
            self.views.send_replace(None);
        }
        pace
    }
}

/// Polls a guest for as long as somebody watches.
async fn keep_polling(guest: Arc<Guest>) {
    let mut link = Link::new(guest.files.socket.clone(), AGENT_TIMEOUT);
    while let Some(pace) = guest.pace_or_end() {
        let began = Instant::now();
        let polled = spawn_blocking(move || {
            let view = poll(&mut link, pace.detail()).map_err(PollError::from);
            (link, view)
        });
        let view;
        (link, view) = match polled.await {
            Ok(polled) => polled,
            Err(error) => (
                Link::new(guest.files.socket.clone(), AGENT_TIMEOUT),
                Err(PollError::Failed(error.to_string())),
            ),
        };
        if let Ok(sample) = &view {
            lock(&guest.history).add(sample);
        }
        guest.views.send_replace(Some(Arc::new(view)));
        let rested = Instant::now() + began.elapsed() * REST;
        rest(&guest, pace, began, rested).await;
    }
}

/// Waits until the guest is to be polled again: sooner if a quicker watch begins.
async fn rest(guest: &Guest, last: Pace, began: Instant, rested: Instant) {
    while let Some(pace) = guest.pace() {
        let lacks_map = pace.detail() == Detail::Map && last.detail() == Detail::Figures;
        let next = if lacks_map { rested } else { rested.max(began + pace.interval()) };
        tokio::select! {
            () = sleep_until(next) => return,
            () = guest.changed.notified() => {}
        }
    }
}

impl History {
    fn add(&mut self, sample: &Sample) {
        let status = &sample.status;
        if std::mem::replace(&mut self.pid, status.pid) != status.pid {
            self.samples.clear();
        }
        let last = self.samples.back().map_or(0, |point| point.at_ms);
        if sample.at_ms < last.saturating_add(SAMPLE_INTERVAL_MS) {
            return;
        }
        if self.samples.len() == HISTORY {
            self.samples.pop_front();
        }
        self.samples.push_back(Point::new(sample));
    }
}

impl Point {
    fn new(sample: &Sample) -> Self {
        let pages = &sample.status.pages;
        let bytes = |count: u64| count.saturating_mul(zerosweep_client::size::PAGE_BYTES);
        Self {
            at_ms: sample.at_ms,
            total_bytes: bytes(pages.total),
            populated_bytes: bytes(pages.populated),
            cache_bytes: bytes(pages.cache),
            entries_bytes: bytes(pages.entries),
            target_bytes: sample.status.target_bytes,
        }
    }
}

/// A guest is watched for as long as this lives.
pub(crate) struct Watch {
    guest: Arc<Guest>,
    pace: Pace,
    views: watch::Receiver<Option<View>>,
}

impl Watch {
    /// What is known now, or after the first poll.
    pub(crate) async fn first(&mut self) -> View {
        let first = timeout(FIRST_LOOK, self.views.wait_for(Option::is_some)).await;
        let view = first.ok().and_then(|view| view.ok()?.clone());
        view.unwrap_or_else(|| Arc::new(Err(PollError::Failed("no answer in time".to_owned()))))
    }

    /// What the next poll gives.
    pub(crate) async fn next(&mut self) -> View {
        loop {
            // The sender lives as long as the guest, and the guest as long as this watch.
            if self.views.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(view) = self.views.borrow_and_update().clone() {
                return view;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.guest.watched).watches[self.pace as usize] -= 1;
        self.guest.changed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
