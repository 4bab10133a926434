//! `zerosweep serve`: all guests of this host on a web page, and for Prometheus. A client of the
//! agents as the commands are, through `zerosweep-client`.
//!
//! ```text
//! token     made here or read from a file; compared in constant time
//! access    access control: Host, Origin, token; headers of every answer
//! guests    one poller a guest, shared by all who watch, asleep when nobody does
//! events    what a page is sent (server-sent events)
//! api       JSON: figures, map, history, and what changes a guest
//! metrics   figures for Prometheus
//! exposition  their two formats
//! routes    which path is answered by which of them
//! listen    connections: bounded, with timeouts, ended by a signal
//! page/     HTML, CSS and scripts, as they are sent
//! ```
//!
//! One thread serves. Questions to agents and QEMU block, so they have threads of their own: a
//! guest that hangs delays only those who ask for it.

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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;
use zerosweep_client::error::Failure;
use zerosweep_client::output::{self, eprint_line};
use zerosweep_client::runtime;
use zerosweep_wire::runtime as wire;

use self::access::Access;
use self::events::Streams;
use self::guests::Guests;
use self::token::Token;

/// Longest wait, when the server ends, for questions that agents have not answered.
const ENDING: Duration = Duration::from_secs(1);

/// Where to listen, and who has access.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Other machines may connect. Reading needs the token too then.
    pub allow_remote: bool,
    /// Names of this host that browsers may use, as behind a proxy.
    pub allow_host: Vec<String>,
    /// Nobody may read without the token, also on this machine.
    pub private: bool,
    /// The file that has the token; without one, a token is made.
    pub token_file: Option<PathBuf>,
    /// Print the address as one JSON document.
    pub json: bool,
}

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
    /// The token that was made; a token from a file is not shown.
    token: Option<&'a str>,
}

/// Serves until a signal ends it. Standard output says where.
///
/// # Errors
/// Wrong usage: an address that other machines can reach, without [`Options::allow_remote`]. Else
/// the work failed: no token, no address to listen on, or a runtime directory that cannot be read.
pub fn serve(options: &Options) -> Result<(), Failure> {
    let address = options.listen;
    if !address.ip().is_loopback() && !options.allow_remote {
        return Err(Failure::usage(format!(
            "other machines can reach {}, and plain HTTP does not protect the token on a network; \
             listen on 127.0.0.1 behind a proxy, or give --allow-remote",
            address.ip()
        )));
    }
    let directory = wire::directory();
    check_directory(&directory)?;
    let token = match &options.token_file {
        Some(file) => Token::read(file)?,
        None => Token::make()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::work(format!("cannot start: {error}")))?;
    let served = runtime.block_on(listen(options, token));
    runtime.shutdown_timeout(ENDING);
    served
}

async fn listen(options: &Options, token: Token) -> Result<(), Failure> {
    let ending = listen::Ending::new()?;
    let listener = bind(options.listen).await?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::work(format!("cannot get the address: {error}")))?;
    let access = Access::new(options, token);
    tell(options, address, &access)?;
    let server = Server {
        access: Arc::new(access),
        guests: Guests::new(wire::directories()),
        streams: Streams::new(),
    };
    listen::serve(listener, routes::router(server), ending).await;
    Ok(())
}

/// Guests may start later, but a directory that cannot be read will not become readable.
fn check_directory(directory: &Path) -> Result<(), Failure> {
    match runtime::names(directory) {
        Err(error) => Err(Failure::work(format!(
            "{error}. Guests are seen by the user who started them, with the same XDG_RUNTIME_DIR"
        ))),
        Ok(_) if directory.exists() => Ok(()),
        Ok(_) => {
            eprint_line(&format!(
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

/// Prints the page's address.
fn tell(options: &Options, address: SocketAddr, access: &Access) -> Result<(), Failure> {
    let token = options.token_file.is_none().then(|| access.token.shown());
    let mut url = format!("http://{}/", access.shown_address(address));
    if let Some(token) = token {
        url += &format!("#token={token}");
    }
    if options.allow_remote {
        eprint_line(
            "warning: plain HTTP: anyone who can listen on the network can read the token; put a \
             proxy with TLS in front",
        );
    }
    if options.json {
        return output::json(&Started { schema: 1, address, url: &url, token });
    }
    let note = match token {
        Some(_) => "Anyone with this address can change targets; keep it to yourself.",
        None => "To change anything, the page asks for the token.",
    };
    output::text(&format!("{url}\n{note} Ctrl-C ends it.\n"))
}
