//! The JSON interface: figures of the guests, and requests that change them. `openapi.json`
//! describes it.
//!
//! A request that changes a guest runs the code of the command of that name.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::{JoinSet, spawn_blocking};
use zerosweep_client::agent::{Client, ClientError, Link};
use zerosweep_client::lines::LineError;
use zerosweep_client::list::{Guest, List};
use zerosweep_client::poll::{AGENT_TIMEOUT, MapPart, PollError, map};
use zerosweep_client::runtime::GuestFiles;
use zerosweep_client::size::Size;
use zerosweep_client::work::{self, Work};
use zerosweep_client::{audit, target};
use zerosweep_wire::{ErrorKind, Status};

use crate::Server;
use crate::guests::{Pace, View};

/// Superpages that one answer has at most.
const MOST_SUPERPAGES: u64 = 1 << 18;

/// Why a request was not done.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    /// For programs.
    kind: &'static str,
    /// For people.
    message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into() }
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    fn no_guest(name: &str) -> Self {
        let shown: String = name.chars().take(64).collect();
        Self::new(StatusCode::NOT_FOUND, "no_guest", format!("no guest named {shown} is running"))
    }

    fn by_agent(name: &str, error: &ClientError) -> Self {
        if error.is_nobody_there() {
            return Self::no_guest(name);
        }
        let (status, kind) = match error {
            ClientError::Line(LineError::Timeout) => (StatusCode::GATEWAY_TIMEOUT, "no_answer"),
            ClientError::Refused(body) => match body.kind {
                ErrorKind::BadValue => (StatusCode::UNPROCESSABLE_ENTITY, "value"),
                ErrorKind::NotManaging => (StatusCode::CONFLICT, "not_managing"),
                ErrorKind::BadRequest | ErrorKind::AuditFailed => {
                    (StatusCode::BAD_GATEWAY, "agent")
                }
            },
            _ => (StatusCode::BAD_GATEWAY, "agent"),
        };
        Self::new(status, kind, format!("guest {name}: {error}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "kind": self.kind, "message": self.message } });
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "request", rejection.body_text())
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "request", rejection.body_text())
    }
}

/// All guests, as `zerosweep ps --json` has them.
pub(crate) async fn guests(State(server): State<Server>) -> Result<Json<List>, Refusal> {
    let guests = poll_all(&server).await?.into_iter();
    let guests = guests.filter_map(|(name, view)| match &*view {
        Ok(sample) => {
            let (status, agent_uid) = (Some(sample.status.clone()), sample.agent_uid);
            Some(Guest { name, status, error: None, agent_uid })
        }
        Err(PollError::Gone) => None,
        Err(PollError::Failed(error)) => {
            Some(Guest { name, status: None, error: Some(error.clone()), agent_uid: None })
        }
    });
    Ok(Json(List::new(guests.collect())))
}

/// The figures of all guests, polled at the same time.
pub(crate) async fn poll_all(server: &Server) -> Result<Vec<(String, View)>, Refusal> {
    let names = server.guests.names().await.map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "directory", error.to_string())
    })?;
    let mut polls = JoinSet::new();
    for name in names {
        if let Some(mut watch) = server.guests.watch(&name, Pace::Figures) {
            polls.spawn(async move { (name, watch.first().await) });
        }
    }
    let mut views = polls.join_all().await;
    views.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(views)
}

/// One guest's figures, as `zerosweep status --json` has them.
pub(crate) async fn guest(
    State(server): State<Server>,
    Path(name): Path<String>,
) -> Result<Json<Status>, Refusal> {
    let watch = server.guests.watch(&name, Pace::Figures);
    let view = watch.ok_or_else(|| Refusal::no_guest(&name))?.first().await;
    match &*view {
        Ok(sample) => Ok(Json(sample.status.clone())),
        Err(PollError::Gone) => Err(Refusal::no_guest(&name)),
        Err(PollError::Failed(error)) => {
            let message = format!("guest {name}: {error}");
            Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "no_answer", message))
        }
    }
}

/// Which superpages are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    #[serde(default)]
    first: u64,
    #[serde(default = "most_superpages")]
    count: u64,
}

fn most_superpages() -> u64 {
    MOST_SUPERPAGES
}

/// A part of one guest's superpage map.
pub(crate) async fn superpages(
    State(server): State<Server>,
    Path(name): Path<String>,
    part: Result<Query<Part>, QueryRejection>,
) -> Result<Json<MapPart>, Refusal> {
    let Query(part) = part?;
    let asked = name.clone();
    ask(&server, &name, move |files| {
        let mut link = Link::new(files.socket.clone(), AGENT_TIMEOUT);
        map(&mut link, part.first, part.count.min(MOST_SUPERPAGES))
            .map(Json)
            .map_err(|error| Refusal::by_agent(&asked, &error))
    })
    .await
}

/// The timeline of one guest, from when somebody watched it.
pub(crate) async fn history(
    State(server): State<Server>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    server.guests.files(&name).ok_or_else(|| Refusal::no_guest(&name))?;
    Ok(Json(json!({ "name": name, "samples": server.guests.history(&name) })))
}

/// A new target.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    target_bytes: u64,
}

/// Sets a guest's target, and has its balloon follow.
pub(crate) async fn target(
    State(server): State<Server>,
    Path(name): Path<String>,
    target: Result<Json<Target>, JsonRejection>,
) -> Result<Json<Status>, Refusal> {
    let size = Size(target?.0.target_bytes);
    let asked = name.clone();
    ask(&server, &name, move |files| {
        let set = connect(&asked, files)
            .map(|mut client| target::set(&mut client, files, &asked, size))?;
        set.map(|change| Json(change.after)).map_err(|error| Refusal::of_target(&asked, &error))
    })
    .await
}

impl Refusal {
    fn of_target(name: &str, error: &target::TargetError) -> Self {
        use target::TargetError;
        let (status, kind) = match error {
            TargetError::Agent { error, .. } => return Self::by_agent(name, error),
            TargetError::Value { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "value"),
            TargetError::Balloon { .. } => (StatusCode::BAD_GATEWAY, "balloon"),
        };
        Self::new(status, kind, error.to_string())
    }
}

/// The outcome of a sweep or a consolidation.
#[derive(Debug, Serialize)]
pub(crate) struct Told {
    /// A sentence, as the command prints it.
    text: String,
    #[serde(flatten)]
    report: Value,
}

/// Sweeps all superpages of a guest.
pub(crate) async fn sweep(
    State(server): State<Server>,
    Path(name): Path<String>,
) -> Result<Json<Told>, Refusal> {
    long_work(&server, &name, Work::Sweep).await
}

/// Moves a guest's single pages together.
pub(crate) async fn consolidate(
    State(server): State<Server>,
    Path(name): Path<String>,
) -> Result<Json<Told>, Refusal> {
    long_work(&server, &name, Work::Consolidate).await
}

async fn long_work(server: &Server, name: &str, what: Work) -> Result<Json<Told>, Refusal> {
    server.guests.files(name).ok_or_else(|| Refusal::no_guest(name))?;
    let turn = server.guests.begin_work(name).ok_or_else(|| {
        let message = format!("guest {name} is being swept or consolidated already");
        Refusal::new(StatusCode::CONFLICT, "busy", message)
    })?;
    let asked = name.to_owned();
    ask(server, name, move |files| {
        let _turn = turn;
        let mut client = connect(&asked, files)?;
        let done = work::perform(what, &mut client, || {})
            .map_err(|error| Refusal::by_agent(&asked, &error))?;
        let report = done.report(&asked);
        let text = report.told(what).trim_end().to_owned();
        Ok(Json(Told { text, report: document(&report)? }))
    })
    .await
}

/// Makes a guest's agent recount all figures.
pub(crate) async fn recount(
    State(server): State<Server>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let asked = name.clone();
    ask(&server, &name, move |files| {
        let mut client = connect(&asked, files)?;
        let counted =
            audit::perform(&mut client).map_err(|error| Refusal::by_agent(&asked, &error))?;
        document(&counted.report(&asked)).map(Json)
    })
    .await
}

fn document(report: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(report).map_err(|error| broken(&error))
}

fn broken(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "server", error.to_string())
}

fn connect(name: &str, files: &GuestFiles) -> Result<Client, Refusal> {
    Client::connect(&files.socket, AGENT_TIMEOUT).map_err(|error| Refusal::by_agent(name, &error))
}

/// Runs blocking work in a thread of its own.
async fn ask<R: Send + 'static>(
    server: &Server,
    name: &str,
    work: impl FnOnce(&GuestFiles) -> Result<R, Refusal> + Send + 'static,
) -> Result<R, Refusal> {
    let files = server.guests.files(name).ok_or_else(|| Refusal::no_guest(name))?;
    spawn_blocking(move || work(&files)).await.map_err(|error| broken(&error))?
}
