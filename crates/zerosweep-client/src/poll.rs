//! Polls a guest once: its figures, and its superpage map. It blocks: run it in a thread of its
//! own.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
pub use zerosweep::SUPERPAGE_BYTES;
use zerosweep::SuperpageState;
use zerosweep_wire::{ErrorKind, MAP_SUPERPAGES, Map, Operation, Status};

use crate::agent::{ClientError, Link};

/// Longest wait for one answer of an agent.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest map, in superpages: 64 TiB.
const MOST_SUPERPAGES: u64 = 1 << 25;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The figures.
    Figures,
    /// The figures and the superpage map.
    Map,
}

/// One guest at one moment.
#[derive(Debug)]
pub struct Sample {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Its figures.
    pub status: Status,
    /// One letter a superpage, if the map was asked for and the guest has memory.
    pub letters: Option<Arc<str>>,
    /// Whose agent it is, where that is neither this user nor root.
    pub agent_uid: Option<u32>,
}

/// Why there is no sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollError {
    /// Nobody listens on its socket: the guest has ended.
    Gone,
    /// Anything else, as a sentence.
    Failed(String),
}

impl From<ClientError> for PollError {
    fn from(error: ClientError) -> Self {
        if error.is_nobody_there() { Self::Gone } else { Self::Failed(error.to_string()) }
    }
}

/// Polls the guest at the other end of `link`.
///
/// # Errors
/// When its agent does not answer, or not as the protocol says.
pub fn poll(link: &mut Link, detail: Detail) -> Result<Sample, ClientError> {
    let (status, letters) = match detail {
        Detail::Figures => (link.request(Operation::Status)?, None),
        Detail::Map => match map(link, 0, u64::MAX) {
            Ok(part) => (part.status, Some(part.letters.into())),
            // It has no memory yet, or has lost its cap.
            Err(ClientError::Refused(body)) if body.kind == ErrorKind::NotManaging => {
                (link.request(Operation::Status)?, None)
            }
            Err(error) => return Err(error),
        },
    };
    Ok(Sample { at_ms: now_ms(), status, letters, agent_uid: link.other_user() })
}

/// A part of a guest's superpage map.
#[derive(Debug, Serialize)]
pub struct MapPart {
    /// Number of the first one.
    pub first: u64,
    /// The number of superpages of the guest.
    pub superpages: u64,
    /// A letter each.
    pub letters: String,
    /// Three hexadecimal digits each.
    pub live: String,
    #[serde(skip)]
    status: Status,
}

/// `count` superpages from number `first` on, or as many as there are.
///
/// # Errors
/// As [`poll`]; a guest without memory has no map.
pub fn map(link: &mut Link, first: u64, count: u64) -> Result<MapPart, ClientError> {
    let mut status = link.request(Operation::Map { first })?;
    let superpages = status.max_mem_bytes.div_ceil(SUPERPAGE_BYTES);
    let end = first.saturating_add(count).min(superpages);
    let (mut letters, mut live) = (String::new(), String::new());
    let mut part = status.map.take();
    let mut asked = first;
    while let Some(map) = part {
        check(&map, asked)?;
        letters += &map.letters;
        live += &map.live;
        let next = asked + map.letters.len() as u64;
        if map.letters.is_empty() || next >= end || next - first >= MOST_SUPERPAGES {
            break;
        }
        asked = next;
        part = link.request(Operation::Map { first: next })?.map;
    }
    let wanted = usize::try_from(end.saturating_sub(first)).unwrap_or(usize::MAX);
    letters.truncate(wanted);
    live.truncate(wanted.saturating_mul(3));
    Ok(MapPart { first, superpages, letters, live, status })
}

/// Checks a part of the map before it is joined to the rest: an agent is not trusted to send the
/// part that was asked for.
fn check(map: &Map, first: u64) -> Result<(), ClientError> {
    let count = map.letters.len();
    let is_part = map.first == first
        && count as u64 <= MAP_SUPERPAGES
        && map.letters.bytes().all(|letter| SuperpageState::from_letter(letter).is_some())
        && map.live.len() == 3 * count
        && map.live.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_part {
        Ok(())
    } else {
        Err(ClientError::Malformed(format!("no map from superpage {first} on")))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use zerosweep_wire::{Answer, ErrorBody, PROTOCOL, Request, Response};

    use super::*;
    use crate::test_support::{FakeServer, Peer, hello_line, sample_status};

    fn answer(peer: &mut Peer, letters: &str) {
        let request: Request = serde_json::from_str(&peer.receive()).unwrap();
        let Operation::Map { first } = request.operation else { panic!("{request:?}") };
        let map = Map { first, letters: letters.into(), live: "1ff".repeat(letters.len()) };
        let status = Status { map: Some(map), ..sample_status("vm") };
        let response = Response { id: request.id, answer: Answer::Ok(Box::new(status)) };
        peer.send(&serde_json::to_string(&response).unwrap());
    }

    #[test]
    fn a_map_is_put_together_from_parts() {
        // The sample guest has 2 GiB: 1024 superpages.
        let server = FakeServer::new(|peer| {
            peer.send(&hello_line("vm", 42, PROTOCOL));
            answer(peer, &"W".repeat(600));
            answer(peer, &"p".repeat(424));
            answer(peer, &"b".repeat(500));
        });
        let mut link = Link::new(server.path().to_owned(), AGENT_TIMEOUT);
        let sample = poll(&mut link, Detail::Map).unwrap();
        let letters = sample.letters.unwrap();
        assert_eq!((letters.len(), letters.find('p')), (1024, Some(600)));
        assert!(sample.status.map.is_none() && sample.at_ms > 0);
        let part = map(&mut link, 7, 10).unwrap();
        assert_eq!((part.letters.as_str(), part.live.len()), ("bbbbbbbbbb", 30));
    }

    #[test]
    fn a_guest_without_memory_has_figures_and_no_map() {
        let server = FakeServer::new(|peer| {
            peer.send(&hello_line("vm", 42, PROTOCOL));
            peer.receive();
            let body = ErrorBody { kind: ErrorKind::NotManaging, message: "not yet".into() };
            let answer = Answer::Error(body);
            peer.send(&serde_json::to_string(&Response { id: 1, answer }).unwrap());
            assert!(peer.receive().contains("status"));
            let answer = Answer::Ok(Box::new(sample_status("vm")));
            peer.send(&serde_json::to_string(&Response { id: 2, answer }).unwrap());
        });
        let mut link = Link::new(server.path().to_owned(), AGENT_TIMEOUT);
        let sample = poll(&mut link, Detail::Map).unwrap();
        assert!(sample.letters.is_none());
    }

    #[test]
    fn nobody_there_is_gone() {
        let mut link = Link::new("/nowhere/vm.sock".into(), AGENT_TIMEOUT);
        assert_eq!(PollError::from(poll(&mut link, Detail::Figures).unwrap_err()), PollError::Gone);
    }

    #[test]
    fn what_is_no_part_of_the_map_is_not_joined_to_it() {
        let map = |first, letters: &str, live: &str| Map {
            first,
            letters: letters.into(),
            live: live.into(),
        };
        check(&map(7, "Wrbp.", &"1ff".repeat(5)), 7).unwrap();
        let most = usize::try_from(MAP_SUPERPAGES).unwrap();
        for wrong in [
            map(6, "W", "200"),
            map(u64::MAX, "W", "200"),
            map(7, "é", "200200"),
            map(7, "<", "200"),
            map(7, "W", "20"),
            map(7, "W", "é0"),
            map(7, &"W".repeat(most + 1), &"200".repeat(most + 1)),
        ] {
            let error = check(&wrong, 7).unwrap_err().to_string();
            assert!(error.contains("no map from superpage 7 on"), "{error}");
        }
    }
}
