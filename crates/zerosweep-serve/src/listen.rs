//! Connections: not too many, none that says nothing for ever, and an end when a signal asks for
//! it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use zerosweep_client::error::Failure;

/// Connections at the same time; further ones wait to be accepted.
const MOST_CONNECTIONS: usize = 128;
/// A request's headers come within this, also the next one of a connection that is kept.
const HEADERS: Duration = Duration::from_secs(15);
/// Bytes of a request's headers.
const HEADERS_BYTES: usize = 16 * 1024;
/// Requests that are being answered when the server ends get so long.
const ENDING: Duration = Duration::from_millis(500);
/// Between two tries when the kernel gives no connection (out of descriptors, most likely).
const PAUSE: Duration = Duration::from_millis(100);

/// The signals that end the server; caught from when it is made.
pub(crate) struct Ending {
    interrupt: Signal,
    terminate: Signal,
}

impl Ending {
    pub(crate) fn new() -> Result<Self, Failure> {
        let catch = |kind| {
            signal(kind).map_err(|error| Failure::work(format!("cannot catch signals: {error}")))
        };
        let interrupt = catch(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: catch(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Answers until the end is asked for.
pub(crate) async fn serve(listener: TcpListener, router: Router, mut ending: Ending) {
    let seats = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let open = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEADERS_BYTES);
    loop {
        let next = async {
            let seat = Arc::clone(&seats).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, seat))
        };
        let (stream, seat) = tokio::select! {
            () = ending.asked() => break,
            next = next => match next {
                Ok(accepted) => accepted,
                Err(_) => {
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        // Events are small and wanted now.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A connection that breaks is its other end's business.
            let _ = connection.await;
            drop(seat);
        });
    }
    let _ = timeout(ENDING, open.shutdown()).await;
}
