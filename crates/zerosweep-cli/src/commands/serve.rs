//! `zerosweep serve`: all guests of this host on a web page, and for Prometheus.
//!
//! ```text
//! token     made here or read from a file; compared in constant time
//! access    who may ask: Host, Origin, token; headers of every answer
//! guests    one poller a guest, shared by all who watch, asleep when nobody does
//! look      one look at a guest: the blocking client
//! events    what a page is sent (server-sent events)
//! api       JSON: figures, map, history, and what changes a guest
//! metrics   figures for Prometheus
//! exposition  the formats of those
//! routes    which of them answers what
//! listen    connections: bounded, with timeouts, ended by a signal
//! page/     HTML, CSS and scripts, as they are sent
//! ```
//!
//! One thread runs all of it but the questions to agents and QEMU, which block and have threads of
//! their own: a guest that hangs holds up only those who ask for it.

mod access;
mod api;
mod events;
mod exposition;
mod guests;
mod listen;
mod metrics;
mod routes;
mod token;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;
use zerosweep_wire::runtime as wire;

use self::access::Access;
use self::events::Streams;
use self::guests::Guests;
use self::token::Token;
use crate::cli::ServeArguments;
use crate::console::complain;
use crate::error::Failure;
use crate::{output, runtime};

/// Questions that are still with an agent when the server ends are waited for so long.
const ENDING: Duration = Duration::from_secs(1);

/// What all requests share.
#[derive(Clone)]
struct Server {
    access: Arc<Access>,
    guests: Arc<Guests>,
    streams: Streams,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Started<'a> {
    schema: u32,
    address: SocketAddr,
    url: &'a str,
    /// The token that was made; one from a file is not told.
    token: Option<&'a str>,
}

/// Serves until a signal ends it.
pub(super) fn execute(arguments: &ServeArguments) -> Result<ExitCode, Failure> {
    let address = arguments.listen;
    if !address.ip().is_loopback() && !arguments.allow_remote {
        return Err(Failure::usage(format!(
            "{} can be reached by other machines, and plain HTTP is no protection on a network; \
             listen on 127.0.0.1 behind a proxy, or say --allow-remote",
            address.ip()
        )));
    }
    let directory = wire::directory();
    check_directory(&directory)?;
    let token = match &arguments.token_file {
        Some(file) => Token::read(file)?,
        None => Token::make()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::work(format!("cannot start: {error}")))?;
    let served = runtime.block_on(serve(arguments, token));
    runtime.shutdown_timeout(ENDING);
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(arguments: &ServeArguments, token: Token) -> Result<(), Failure> {
    let ending = listen::Ending::new()?;
    let listener = bind(arguments.listen).await?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::work(format!("cannot tell the address: {error}")))?;
    let access = Access::new(arguments, token);
    tell(arguments, address, &access)?;
    let server = Server {
        access: Arc::new(access),
        guests: Guests::new(wire::directories()),
        streams: Streams::new(),
    };
    listen::serve(listener, routes::router(server), ending).await;
    Ok(())
}

/// Guests may come later; a directory that cannot be read will not become readable.
fn check_directory(directory: &Path) -> Result<(), Failure> {
    match runtime::names(directory) {
        Err(error) => Err(Failure::work(format!(
            "{error}. Guests are seen by the user who started them, with the same XDG_RUNTIME_DIR"
        ))),
        Ok(_) if directory.exists() => Ok(()),
        Ok(_) => {
            complain(&format!(
                "note: no guest was started yet by this user ({} is not there)",
                directory.display()
            ));
            Ok(())
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::AddrInUse => "; another program listens there, so choose another port",
            ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
            ErrorKind::PermissionDenied => "; ports below 1024 are for root",
            _ => "",
        };
        Failure::work(format!("cannot listen on {address}: {error}{advice} (--listen ADDR:PORT)"))
    })
}

/// Says where the page is.
fn tell(arguments: &ServeArguments, address: SocketAddr, access: &Access) -> Result<(), Failure> {
    let token = arguments.token_file.is_none().then(|| access.token.shown());
    let mut url = format!("http://{}/", access.shown_address(address));
    if let Some(token) = token {
        url += &format!("#token={token}");
    }
    if arguments.allow_remote {
        complain(
            "warning: plain HTTP: who can listen on the network can read the token; put a proxy \
             with TLS in front",
        );
    }
    if arguments.json {
        return output::json(&Started { schema: 1, address, url: &url, token });
    }
    let note = match token {
        Some(_) => "Who has this address can change targets; keep it to yourself.",
        None => "To change anything, the page asks for the token.",
    };
    output::text(&format!("{url}\n{note} Ctrl-C ends it.\n"))
}
