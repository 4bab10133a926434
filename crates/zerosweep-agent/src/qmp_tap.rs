//! Reads what another tool asks the guest's balloon for (libvirt's `setmem`), and has the target
//! follow.
//!
//! QEMU reports how far the guest's balloon has come (`query-balloon`), but not what it was asked
//! for, and it serves one client a QMP socket. So the agent reads what comes in on the sockets of
//! the tool that manages the VMM ([`Follow::monitors`]): one command a line, as libvirt writes
//! them.
//!
//! ```text
//! balloon, before the guest runs   the target                                 at once
//! balloon, above the target        the target                                 at once
//! balloon, below the target        goes down with what the guest gives back   `ballooned`
//! cont, and nothing asked for      no limit: the target is all of its memory  at once
//! ```
//!
//! *At once* is before QEMU has read the command, so a balloon that deflates finds the target
//! raised. How far down the guest is, the tool beside the VMM says ([`Operation::Ballooned`]): the
//! engine learns of a page that was taken again only when it is touched. Without that tool the
//! target goes up but not down, and the guest goes on.
//!
//! Only sockets that were named are read: a process that can write to them can make the VMM do
//! anything.
//!
//! Known holes: commands that do not end with a new line; the balloon asked through the monitor for
//! people (`human-monitor-command`).
//!
//! [`Operation::Ballooned`]: zerosweep_wire::Operation::Ballooned

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use zerosweep::PAGE_BYTES;
use zerosweep_linux::{GuestMemory, SetTargetError};
use zerosweep_wire::{BeforeStart, Follow};

use crate::{state, sys};

/// Longest command that is kept; libvirt's are far shorter.
const MOST_BYTES: usize = 256 << 10;

static FOLLOWER: Mutex<Follower> = Mutex::new(Follower::new());

fn follower() -> MutexGuard<'static, Follower> {
    FOLLOWER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wanted() -> Option<&'static Follow> {
    state::config()?.follow.as_ref()
}

/// Whether the configuration names sockets to read.
pub(crate) fn is_wanted() -> bool {
    wanted().is_some()
}

/// What the balloon was last asked for.
pub(crate) fn request_bytes() -> Option<u64> {
    follower().request.map(|pages| pages * PAGE_BYTES)
}

/// The VMM has received `bytes` on a socket. Never panics.
pub(crate) fn received(socket: c_int, bytes: impl FnOnce() -> Vec<u8>) {
    state::guarded("the reader of the monitor's commands", || {
        let Some(follow) = wanted() else { return };
        let Some(path) = sys::local_path(socket) else { return };
        if !follow.monitors.contains(&path) {
            return;
        }
        let mut follower = follower();
        let commands = follower.commands(socket, &bytes());
        let Some(Ok(memory)) = state::guest() else { return };
        let mut changed = false;
        for command in commands {
            changed |= obey(&mut follower, follow, command, memory);
        }
        drop(follower);
        // This is a thread of the VMM's: the maintenance thread does what takes long. The status
        // reports a cache that cannot be filled.
        if changed {
            let _ = memory.fill_cache();
        }
    });
}

/// Obeys a command. Returns whether the target has changed.
fn obey(follower: &mut Follower, follow: &Follow, command: Command, memory: &GuestMemory) -> bool {
    let quantities = memory.quantities();
    follower
        .obey(command, follow.before_start, quantities.target, quantities.max)
        // A lifted cap has no target.
        .is_some_and(|pages| memory.begin_target(pages * PAGE_BYTES).is_ok())
}

/// The balloon has left the guest `actual_bytes`. The target goes down to that; the upkeep thread
/// does the work.
pub(crate) fn ballooned(memory: &GuestMemory, actual_bytes: u64) {
    let follower = follower();
    let target = memory.quantities().target;
    if let Some(pages) = follower.lowered(target, actual_bytes.div_ceil(PAGE_BYTES)) {
        let _ = memory.begin_target(pages * PAGE_BYTES);
    }
}

/// Sets the target on request of another client, and works until it is reached. The balloon's last
/// request no longer counts.
pub(crate) fn overrule(memory: &GuestMemory, target_bytes: u64) -> Result<(), SetTargetError> {
    {
        let mut follower = follower();
        follower.request = None;
        memory.begin_target(target_bytes)?;
    }
    // Without the lock: the VMM may wait for it, and so may a client that asks for the status.
    memory.reach_target()
}

/// Whether the guest has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
}

/// A command that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// The balloon is asked to leave the guest this many pages.
    Balloon(u64),
    /// The guest runs from now on.
    Continue,
}

struct Follower {
    phase: Phase,
    /// In pages.
    request: Option<u64>,
    unfinished: Vec<Unfinished>,
}

/// The beginning of a line that came in on a socket.
struct Unfinished {
    socket: c_int,
    line: Vec<u8>,
    /// It is too long; what belongs to it is left out.
    skips: bool,
}

impl Follower {
    const fn new() -> Self {
        Self { phase: Phase::Starting, request: None, unfinished: Vec::new() }
    }

    /// The commands that are complete with `bytes`; none are the end of the connection.
    fn commands(&mut self, socket: c_int, bytes: &[u8]) -> Vec<Command> {
        if bytes.is_empty() {
            self.unfinished.retain(|unfinished| unfinished.socket != socket);
            return Vec::new();
        }
        let known = self.unfinished.iter().position(|unfinished| unfinished.socket == socket);
        let at = known.unwrap_or_else(|| {
            self.unfinished.push(Unfinished { socket, line: Vec::new(), skips: false });
            self.unfinished.len() - 1
        });
        let unfinished = &mut self.unfinished[at];
        let mut commands = Vec::new();
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            unfinished.skips |= unfinished.line.len() + part.len() > MOST_BYTES;
            if unfinished.skips {
                unfinished.line.clear();
            } else {
                unfinished.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                commands.extend(Command::read(&unfinished.line));
                unfinished.line.clear();
                unfinished.skips = false;
            }
        }
        commands
    }

    /// The target that follows from `command`, if it is another one than `target`.
    fn obey(
        &mut self,
        command: Command,
        before_start: BeforeStart,
        target: u64,
        max: u64,
    ) -> Option<u64> {
        let first = self.phase == Phase::Starting;
        let next = match command {
            Command::Continue if !first => return None,
            Command::Continue => {
                self.phase = Phase::Running;
                let unlimited = self.request.is_none() && before_start == BeforeStart::Target;
                if unlimited { max } else { target }
            }
            Command::Balloon(_) if first && before_start == BeforeStart::Nothing => return None,
            Command::Balloon(pages) => {
                // As QEMU: more than there is means all of it.
                let request = pages.min(max);
                self.request = Some(request);
                if first { request } else { request.max(target) }
            }
        };
        (next != target).then_some(next)
    }

    /// The target below `target` that a guest with `actual` pages has reached on its way to the
    /// last request.
    fn lowered(&self, target: u64, actual: u64) -> Option<u64> {
        let next = self.request?.max(actual);
        (next < target).then_some(next)
    }
}

impl Command {
    fn read(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Any {
            execute: String,
            #[serde(default)]
            arguments: serde_json::Value,
        }
        let command: Any = serde_json::from_slice(line).ok()?;
        match command.execute.as_str() {
            "cont" => Some(Self::Continue),
            "balloon" => {
                let pages = command.arguments.get("value")?.as_u64()? / PAGE_BYTES;
                (pages > 0).then_some(Self::Balloon(pages))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BALLOON: &[u8] =
        b"{\"execute\":\"balloon\",\"arguments\":{\"value\":536870912},\"id\":\"libvirt-9\"}\r\n";
    const REQUEST: Command = Command::Balloon(1 << 17);
    const MAX: u64 = 1 << 19;

    #[test]
    fn commands_come_in_pieces_and_several_at_a_time() {
        let mut follower = Follower::new();
        assert_eq!(follower.commands(5, &BALLOON[..30]), []);
        assert_eq!(follower.commands(6, b"{\"execute\":\"cont\"}\n"), [Command::Continue]);
        assert_eq!(follower.commands(5, &BALLOON[30..]), [REQUEST]);
        let both = [BALLOON, b"{\"execute\":\"query-balloon\"}\n{\"execute\":\"cont\"}\n"].concat();
        assert_eq!(follower.commands(5, &both), [REQUEST, Command::Continue]);
        assert_eq!(follower.commands(5, b"{\"execute\":"), []);
        assert_eq!(follower.commands(5, b""), []);
        assert_eq!(follower.commands(5, BALLOON), [REQUEST], "a new connection starts over");
    }

    #[test]
    fn what_is_no_request_is_none() {
        let mut follower = Follower::new();
        for line in [
            "{\"execute\":\"balloon\"}",
            "{\"execute\":\"balloon\",\"arguments\":{\"value\":0}}",
            "{\"execute\":\"balloon\",\"arguments\":{\"value\":-4096}}",
            "{\"execute\":\"qom-set\",\"arguments\":{\"property\":\"balloon\",\"value\":8192}}",
            "{\"return\":{},\"execute\":[\"cont\"]}",
            "not JSON",
        ] {
            assert_eq!(follower.commands(3, format!("{line}\n").as_bytes()), [], "{line}");
        }
    }

    #[test]
    fn a_line_without_end_is_bounded_and_the_next_one_is_read() {
        let mut follower = Follower::new();
        for _ in 0..3 {
            assert_eq!(follower.commands(3, &[b'x'; MOST_BYTES]), []);
            assert!(follower.unfinished[0].line.len() <= MOST_BYTES);
        }
        assert_eq!(follower.commands(3, b"x\n"), []);
        assert_eq!(follower.commands(3, BALLOON), [REQUEST]);
    }

    #[test]
    fn the_request_before_the_guest_runs_is_the_target() {
        let mut follower = Follower::new();
        let mut obey = |command, target| follower.obey(command, BeforeStart::Target, target, MAX);
        assert_eq!(obey(REQUEST, 1 << 14), Some(1 << 17));
        assert_eq!(obey(Command::Balloon(1 << 16), 1 << 17), Some(1 << 16), "in either direction");
        assert_eq!(obey(Command::Continue, 1 << 16), None);
        assert_eq!(obey(Command::Balloon(u64::MAX), 1 << 16), Some(MAX));
    }

    #[test]
    fn a_guest_that_runs_without_a_request_has_all_of_its_memory() {
        let mut follower = Follower::new();
        let mut obey = |command| follower.obey(command, BeforeStart::Target, 1 << 14, MAX);
        assert_eq!(obey(Command::Continue), Some(MAX));
        assert_eq!(obey(Command::Continue), None, "also after a pause");
    }

    #[test]
    fn a_target_that_was_given_stands_until_the_guest_runs() {
        let mut follower = Follower::new();
        let mut obey = |command| follower.obey(command, BeforeStart::Nothing, 1 << 14, MAX);
        assert_eq!(obey(REQUEST), None);
        assert_eq!(obey(Command::Continue), None);
        assert_eq!(obey(REQUEST), Some(1 << 17));
    }

    #[test]
    fn the_target_goes_down_with_the_guest_and_no_further_than_asked_for() {
        let mut follower = Follower::new();
        assert_eq!(follower.lowered(MAX, 1), None, "nothing was asked for");
        follower.obey(Command::Continue, BeforeStart::Target, MAX, MAX);
        assert_eq!(follower.obey(REQUEST, BeforeStart::Target, MAX, MAX), None, "not at once");
        assert_eq!(follower.lowered(MAX, MAX), None);
        assert_eq!(follower.lowered(MAX, 1 << 18), Some(1 << 18));
        assert_eq!(follower.lowered(1 << 18, MAX), None, "never up");
        assert_eq!(follower.lowered(1 << 18, 5), Some(1 << 17));
        assert_eq!(follower.lowered(1 << 17, 5), None);
    }
}
