//! The connections to the control socket: their number is bounded, and no client locks others out.
//!
//! Each client has a seat. When all are taken, the client that has been silent the longest loses
//! its seat to the newcomer: those that never asked anything first. One whose request is being
//! worked on keeps its seat.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A client that was sent away leaves within this, or the newcomer is turned away.
const LEAVING: Duration = Duration::from_millis(200);

/// What a client is doing. The order is that in which seats are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    /// It never asked anything, since then.
    New(Instant),
    /// It has had its last answer, since then.
    Silent(Instant),
    /// Its request is being worked on.
    Asking,
    /// It lost its seat, and its thread is about to notice.
    Leaving,
}

/// The seats.
pub(crate) struct Clients {
    seats: Mutex<Vec<Arc<Client>>>,
    left: Condvar,
    most: usize,
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    doing: Mutex<Doing>,
}

/// A client's place; dropping it makes room.
pub(crate) struct Seat<'a> {
    clients: &'a Clients,
    pub(crate) client: Arc<Client>,
}

impl Clients {
    /// Room for `most` clients.
    pub(crate) const fn new(most: usize) -> Self {
        Self { seats: Mutex::new(Vec::new()), left: Condvar::new(), most }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a newcomer a seat; `None` when everybody else is being served.
    pub(crate) fn admit(&self, stream: UnixStream) -> Option<Seat<'_>> {
        let mut seats = self.lock();
        if seats.len() >= self.most {
            send_longest_silent_away(&seats)?;
            let full = |seats: &mut Vec<_>| seats.len() >= self.most;
            let waited = self.left.wait_timeout_while(seats, LEAVING, full);
            seats = waited.unwrap_or_else(PoisonError::into_inner).0;
            if seats.len() >= self.most {
                return None;
            }
        }
        let client = Arc::new(Client { stream, doing: Mutex::new(Doing::New(Instant::now())) });
        seats.push(Arc::clone(&client));
        Some(Seat { clients: self, client })
    }
}

/// Ends its connection: its thread gives the seat up. `None` when there is nobody to send away.
fn send_longest_silent_away(seats: &[Arc<Client>]) -> Option<()> {
    // A client that asks or is answered meanwhile is another's turn: look at each once more.
    let mut silent: Vec<_> = seats.iter().map(|client| (*client.doing(), client)).collect();
    silent.sort_by_key(|&(doing, _)| doing);
    let is_sent = |&(seen, client): &(Doing, &Arc<Client>)| {
        let mut doing = client.doing();
        let goes = *doing == seen && seen < Doing::Asking;
        if goes {
            *doing = Doing::Leaving;
            let _ = client.stream.shutdown(Shutdown::Both);
        }
        goes
    };
    silent.iter().any(is_sent).then_some(())
}

impl Client {
    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on this client's request; `None` when it has lost its seat.
    pub(crate) fn serve<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        {
            let mut doing = self.doing();
            if *doing == Doing::Leaving {
                return None;
            }
            *doing = Doing::Asking;
        }
        let result = work();
        *self.doing() = Doing::Silent(Instant::now());
        Some(result)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.clients.lock().retain(|client| !Arc::ptr_eq(client, &self.client));
        self.clients.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the seat up as soon as the connection ends, as a client's thread does.
    fn sit<'a>(scope: &'a std::thread::Scope<'a, '_>, seat: Seat<'static>) {
        scope.spawn(move || {
            let _ = std::io::Read::read(&mut &seat.client.stream, &mut [0]);
        });
    }

    fn is_gone(mut peer: &UnixStream) -> bool {
        peer.set_nonblocking(true).unwrap();
        matches!(std::io::Read::read(&mut peer, &mut [0]), Ok(0))
    }

    fn newcomer(clients: &'static Clients) -> (UnixStream, Option<Seat<'static>>) {
        let (peer, stream) = UnixStream::pair().unwrap();
        (peer, clients.admit(stream))
    }

    #[test]
    fn who_never_asked_goes_first_and_who_is_served_stays() {
        static CLIENTS: Clients = Clients::new(3);
        std::thread::scope(|scope| {
            let (asked, seat) = newcomer(&CLIENTS);
            let seat = seat.unwrap();
            assert_eq!(seat.client.serve(|| 7), Some(7));
            sit(scope, seat);
            let (working, seat) = newcomer(&CLIENTS);
            let busy = seat.unwrap();
            let (silent, seat) = newcomer(&CLIENTS);
            sit(scope, seat.unwrap());
            let (more, still_more) = busy
                .client
                .serve(|| {
                    let (more, seat) = newcomer(&CLIENTS);
                    let seat = seat.unwrap();
                    assert!(is_gone(&silent) && !is_gone(&asked), "the one that never asked");
                    seat.client.serve(|| ()).unwrap();
                    sit(scope, seat);
                    let (still_more, seat) = newcomer(&CLIENTS);
                    sit(scope, seat.unwrap());
                    assert!(is_gone(&asked) && !is_gone(&more), "the one silent the longest");
                    (more, still_more)
                })
                .unwrap();
            assert!(!is_gone(&working), "a request is worked on");
            drop((more, still_more, busy));
        });
        assert!(CLIENTS.lock().is_empty());
    }

    #[test]
    fn when_all_are_served_a_newcomer_is_turned_away() {
        static CLIENTS: Clients = Clients::new(1);
        let (_peer, seat) = newcomer(&CLIENTS);
        let seat = seat.unwrap();
        seat.client.serve(|| assert!(newcomer(&CLIENTS).1.is_none())).unwrap();
        // It is silent now, but its thread does not go.
        assert!(newcomer(&CLIENTS).1.is_none());
        assert_eq!(seat.client.serve(|| ()), None, "its seat is lost");
    }
}
