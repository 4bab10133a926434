//! Connections: their number and their silence are limited, and a signal ends them all.

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
/// Time limit for a request's headers, also for the next request of a connection.
const HEADERS: Duration = Duration::from_secs(15);
/// Bytes of a request's headers.
const HEADERS_BYTES: usize = 16 * 1024;
/// Longest wait, when the server ends, for requests that are being answered.
const ENDING: Duration = Duration::from_millis(500);
/// Pause before another try when the kernel gives no connection (most likely out of descriptors).
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
        // Events are small, and must not wait to be joined.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A broken connection concerns only its other end.
            let _ = connection.await;
            drop(seat);
        });
    }
    let _ = timeout(ENDING, open.shutdown()).await;
}
