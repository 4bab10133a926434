//! Server-sent events for a page, for as long as it is open.
//!
//! | event | data |
//! | --- | --- |
//! | `guests` | `{"guests":[NAME…],"error":…}`: at the start, and when one comes or goes |
//! | `status` | `{"name":…,"at_ms":…,"status":…}` or `{"name":…,"error":…}` (null: it is gone): after each poll |
//! | `map` | `{"name":…,"superpages":…,"runs":"12W3b"}`: when it changed; runs of letters |
//!
//! A page that reads nothing misses old events, and delays nobody.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, poll_fn};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;
use zerosweep_client::poll::PollError;
use zerosweep_wire::Status;

use crate::Server;
use crate::api::Refusal;
use crate::guests::{Guests, Pace, View, Watch};

/// Streams at the same time.
const MOST_STREAMS: usize = 32;
/// Time between two listings of the guests.
const LIST_INTERVAL: Duration = Duration::from_secs(1);
/// Events that wait for a page to take them.
const WAITING: usize = 8;

/// The streams that may still be opened.
#[derive(Clone, Debug)]
pub(crate) struct Streams(Arc<Semaphore>);

impl Streams {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MOST_STREAMS)))
    }
}

/// What a page wants.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// The guest to send ten times a second; the others are sent once a second.
    live: Option<String>,
}

#[derive(Serialize)]
struct Listed<'a> {
    guests: &'a [String],
    error: Option<String>,
}

#[derive(Serialize)]
struct Figures<'a> {
    name: &'a str,
    at_ms: u64,
    status: &'a Status,
}

#[derive(Serialize)]
struct Failed<'a> {
    name: &'a str,
    /// None: nobody listens on its socket any more.
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Runs<'a> {
    name: &'a str,
    superpages: usize,
    runs: String,
}

/// Opens a stream.
pub(crate) async fn events(
    State(server): State<Server>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let Query(wanted) = wanted?;
    let seat = Arc::clone(&server.streams.0).try_acquire_owned().map_err(|_| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "streams",
            format!("{MOST_STREAMS} pages are open already; close one"),
        )
    })?;
    let (sender, mut receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        feed(&server.guests, wanted.live.as_deref(), &sender).await;
        drop(seat);
    });
    let stream = poll_fn(move |context| receiver.poll_recv(context).map(|event| event.map(Ok)));
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

/// Feeds one page until it is closed.
async fn feed(guests: &Guests, live: Option<&str>, page: &mpsc::Sender<Event>) {
    let mut feeders = JoinSet::new();
    let mut fed = BTreeMap::new();
    let mut told = None;
    loop {
        let (names, error) = match guests.names().await {
            Ok(names) => (names, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        fed.retain(|name: &String, feeder: &mut tokio::task::AbortHandle| {
            let stays = names.contains(name) && !feeder.is_finished();
            if !stays {
                feeder.abort();
            }
            stays
        });
        for name in &names {
            if !fed.contains_key(name) {
                let pace = if live == Some(name) { Pace::Live } else { Pace::Overview };
                if let Some(watch) = guests.watch(name, pace) {
                    let feeder = feeders.spawn(feed_one(name.clone(), watch, page.clone()));
                    fed.insert(name.clone(), feeder);
                }
            }
        }
        while feeders.try_join_next().is_some() {}
        let listed = (names, error);
        if told.as_ref() != Some(&listed) {
            let (names, error) = &listed;
            let list = Listed { guests: names, error: error.clone() };
            if send(page, "guests", &list).await.is_none() {
                return;
            }
            told = Some(listed);
        }
        tokio::select! {
            () = page.closed() => return,
            () = sleep(LIST_INTERVAL) => {}
        }
    }
}

/// Feeds one guest's figures and map to a page, until either is gone.
async fn feed_one(name: String, mut watch: Watch, page: mpsc::Sender<Event>) {
    let mut view = watch.first().await;
    let mut shown = None;
    while send_view(&name, &view, &mut shown, &page).await.is_some() {
        view = watch.next().await;
    }
}

/// `shown` is the map that the page has.
async fn send_view(
    name: &str,
    view: &View,
    shown: &mut Option<Arc<str>>,
    page: &mpsc::Sender<Event>,
) -> Option<()> {
    let sample = match &**view {
        Ok(sample) => sample,
        Err(PollError::Gone) => return send(page, "status", &Failed { name, error: None }).await,
        Err(PollError::Failed(error)) => {
            return send(page, "status", &Failed { name, error: Some(error) }).await;
        }
    };
    let figures = Figures { name, at_ms: sample.at_ms, status: &sample.status };
    send(page, "status", &figures).await?;
    if let Some(letters) = &sample.letters
        && shown.as_ref() != Some(letters)
    {
        let runs = Runs { name, superpages: letters.len(), runs: runs(letters) };
        send(page, "map", &runs).await?;
        *shown = Some(Arc::clone(letters));
    }
    Some(())
}

/// `None`: the page is closed.
async fn send(page: &mpsc::Sender<Event>, event: &str, data: &impl Serialize) -> Option<()> {
    let event = Event::default().event(event).json_data(data).ok()?;
    page.send(event).await.ok()
}

/// `WWWb` as `3W1b`.
fn runs(letters: &str) -> String {
    let mut text = String::new();
    for run in letters.as_bytes().chunk_by(|one, next| one == next) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{}", run.len(), char::from(run[0]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_letters() {
        assert_eq!(runs("WWWb.."), "3W1b2.");
        assert_eq!(runs(""), "");
        assert_eq!(runs(&"p".repeat(32_768)), "32768p");
    }
}
