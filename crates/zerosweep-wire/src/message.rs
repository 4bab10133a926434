//! Requests and responses.

use serde::{Deserialize, Serialize};

use crate::Status;

/// The first line that an agent sends on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the agent's messages.
    pub protocol: u32,
    /// Version of the agent itself.
    pub version: String,
    /// Name of the guest.
    pub name: String,
    /// Process of the VMM.
    pub pid: u32,
}

/// A question to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, repeated in the response.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub operation: Operation,
}

/// The most characters of an error's text that an answer repeats. The text may quote the request,
/// and the answer must fit into one line itself.
const MOST_REASON: usize = 200;

impl Request {
    /// The request that `line` holds.
    ///
    /// # Errors
    /// The answer to a line that holds none.
    pub fn read(line: &[u8]) -> Result<Self, Response> {
        serde_json::from_slice(line).map_err(|error| {
            let reason: String = error.to_string().chars().take(MOST_REASON).collect();
            let message = format!("not a request: {reason}");
            let body = ErrorBody { kind: ErrorKind::BadRequest, message };
            Response { id: 0, answer: Answer::Error(body) }
        })
    }
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Operation {
    /// All figures of the guest.
    Status,
    /// All figures, and the superpage map from superpage `first` on: up to
    /// [`MAP_SUPERPAGES`](crate::MAP_SUPERPAGES) of them.
    Map {
        /// Number of the first superpage: gfn / 512.
        first: u64,
    },
    /// Look at every superpage from number `first` on and take back those that are zero (rule
    /// [R8]), for a moment. [`Status::next`] says where to go on.
    ///
    /// [R8]: https://github.com/zerosweep/zerosweep/blob/main/docs/rules.md#r8
    Sweep {
        /// Number of the first superpage: 0, or what the last answer said.
        first: u64,
    },
    /// Move live single pages together (rule [R13]), for a moment. [`Status::next`] says whether
    /// there is more; 0 begins a new consolidation.
    ///
    /// [R13]: https://github.com/zerosweep/zerosweep/blob/main/docs/rules.md#r13
    Consolidate {
        /// 0, or what the last answer said.
        first: u64,
    },
    /// Recount every figure from the tables (rule [R19]).
    ///
    /// [R19]: https://github.com/zerosweep/zerosweep/blob/main/docs/rules.md#r19
    Audit,
    /// Set what the guest may hold; the guest's balloon is the asking side's business.
    SetTarget {
        /// The new target in bytes.
        target_bytes: u64,
    },
    /// Say how much of its memory the guest's balloon has left it. A target that follows a lower
    /// request goes down to that, and no further than the request.
    Ballooned {
        /// What the VMM says, in bytes.
        actual_bytes: u64,
    },
    /// Say how much of its memory the guest's balloon has left it, when neither that nor
    /// [`Pages::ballooned_out`](crate::Pages::ballooned_out) changes any more: the engine then counts
    /// as many pages given back as the balloon has (rule [R21]).
    ///
    /// [R21]: https://github.com/zerosweep/zerosweep/blob/main/docs/rules.md#r21
    Reconcile {
        /// What the VMM says, in bytes.
        actual_bytes: u64,
    },
    /// Say which threads of the VMM run virtual CPUs: only these may stall (rule [R15]).
    ///
    /// [R15]: https://github.com/zerosweep/zerosweep/blob/main/docs/rules.md#r15
    Vcpus {
        /// Thread ids in the agent's PID namespace.
        thread_ids: Vec<u32>,
    },
}

/// The answer to the [`Request`] of the same id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The request's id; 0 when it could not be read.
    pub id: u64,
    /// The result of the request.
    #[serde(flatten)]
    pub answer: Answer,
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done. Every request answers with the status after it; `Audit` does so when no difference was
    /// found.
    Ok(Box<Status>),
    /// Not done.
    Error(ErrorBody),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The kind, for programs.
    pub kind: ErrorKind,
    /// The message, for people: lowercase, with the value that was wrong.
    pub message: String,
}

/// The kinds of [`ErrorBody`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The line was not a request that this version knows.
    BadRequest,
    /// The value is invalid.
    BadValue,
    /// The guest's memory is not managed (yet, or any more).
    NotManaging,
    /// The audit found a difference.
    AuditFailed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let request: Request = serde_json::from_str(r#"{"id":1,"op":"status"}"#).unwrap();
        assert_eq!(request, Request { id: 1, operation: Operation::Status });
        let request: Request =
            serde_json::from_str(r#"{"id":2,"op":"set_target","target_bytes":4096}"#).unwrap();
        assert_eq!(request.operation, Operation::SetTarget { target_bytes: 4096 });
    }

    #[test]
    fn what_is_no_request_has_an_answer_that_fits_into_a_line() {
        // What quotes a quote is twice as long each time.
        let line = format!(r#"{{"id":"{}","op":"audit"}}"#, r#"\""#.repeat(30_000));
        assert!(line.len() <= crate::MAX_LINE_BYTES);
        let response = Request::read(line.as_bytes()).unwrap_err();
        let Answer::Error(body) = &response.answer else { panic!("{response:?}") };
        assert_eq!((response.id, body.kind), (0, ErrorKind::BadRequest));
        assert!(
            body.message.starts_with("not a request: invalid type: string"),
            "{}",
            body.message
        );
        assert!(serde_json::to_string(&response).unwrap().len() <= crate::MAX_LINE_BYTES);
    }

    #[test]
    fn a_response_is_ok_or_error() {
        let error = ErrorBody { kind: ErrorKind::BadValue, message: "no".into() };
        let response = Response { id: 7, answer: Answer::Error(error) };
        let line = serde_json::to_string(&response).unwrap();
        assert_eq!(line, r#"{"id":7,"error":{"kind":"bad_value","message":"no"}}"#);
        assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), response);
    }
}
