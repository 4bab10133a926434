//! `zerosweep balance --total SIZE`: the targets of all guests of this host within a budget.
//!
//! ```text
//! look     every guest's figures, its balloon, what it says of its memory    observe
//! judge    what it needs                                                      need
//! decide   who is to have how much: a pure function                           decide
//! do       down: the balloon first, then the target; up: the other way round  observe
//! ```
//!
//! Rounds follow one another until Ctrl-C. Nothing is kept outside this process: when it ends, or
//! is killed, the targets stay as they are, and the next one begins from what it finds. A guest
//! that comes takes part from the next round on, with the target it has; what one that goes had is
//! free.

mod decide;
mod need;
mod observe;
mod policy;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use zerosweep_client::error::Failure;
use zerosweep_client::output::{self, eprint_line};
use zerosweep_client::size::Size;

use self::decide::{Decision, TooSmall, Why, decide};
use self::observe::{Known, Looked};
use self::policy::Policy;
use crate::cli::BalanceArguments;

/// How often a sleep looks whether it is to end.
const NAP: Duration = Duration::from_millis(100);

/// Balances until it is told to stop.
pub(super) fn execute(arguments: &BalanceArguments) -> Result<ExitCode, Failure> {
    let policy = Policy::new(arguments)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::work(format!("cannot catch signals: {error}")))?;
    }
    let mut known = BTreeMap::new();
    for number in 1.. {
        let began = Instant::now();
        let refused = round(arguments, &policy, &mut known, number)?;
        if let Some(TooSmall { least_bytes }) = refused {
            let message = format!(
                "a total of {} is less than the guests' minima together, {}; raise --total, or \
                 lower a minimum (--guest NAME:min=SIZE)",
                Size(policy.total_bytes),
                Size(least_bytes)
            );
            // At the start it was asked for wrongly; later a guest has come, and may go.
            if number == 1 {
                return Err(Failure::usage(message));
            }
            eprint_line(&format!("warning: {message}; nothing is changed meanwhile"));
        }
        if arguments.dry_run || arguments.once {
            break;
        }
        while began.elapsed() < arguments.interval.max(NAP) && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(NAP);
        }
        if stop.load(Ordering::SeqCst) {
            eprint_line("the guests keep the targets that they have now");
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks, decides, tells, and does.
fn round(
    arguments: &BalanceArguments,
    policy: &Policy,
    known: &mut BTreeMap<String, Known>,
    number: u64,
) -> Result<Option<TooSmall>, Failure> {
    let guests = observe::look(policy, known, !arguments.dry_run)?;
    let seen: Vec<_> = guests.iter().map(|guest| guest.seen).collect();
    let decisions = match decide(policy.total_bytes, &seen) {
        Ok(decisions) => decisions,
        Err(too_small) => return Ok(Some(too_small)),
    };
    let lines: Vec<_> =
        guests.iter().zip(&decisions).map(|(guest, decision)| Line::new(guest, decision)).collect();
    if arguments.json {
        let committed: u64 = lines.iter().map(|line| line.target_bytes.max(line.held_bytes)).sum();
        let (total_bytes, free_bytes) =
            (policy.total_bytes, policy.total_bytes.saturating_sub(committed));
        let mut text = serde_json::to_string(&Round {
            schema: 1,
            round: number,
            total_bytes,
            free_bytes,
            guests: &lines,
        })
        .map_err(|error| Failure::work(format!("cannot write JSON: {error}")))?;
        text.push('\n');
        output::text(&text)?;
    } else {
        // A round without a change is of interest only to who asked for that one.
        let all = number == 1 || arguments.dry_run || arguments.once;
        output::text(&render(&lines, policy.total_bytes, all))?;
    }
    if !arguments.dry_run {
        for (guest, decision) in guests.iter().zip(&decisions) {
            if let Err(error) = observe::act(guest, decision, known) {
                eprint_line(&format!("warning: guest {}: {error}", guest.name));
            }
        }
    }
    Ok(None)
}

/// What `--json` prints of a round.
#[derive(Serialize)]
struct Round<'a> {
    schema: u32,
    round: u64,
    total_bytes: u64,
    /// What no guest has or may take.
    free_bytes: u64,
    guests: &'a [Line],
}

/// One guest's part of a round.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// Before the round.
    target_bytes: u64,
    held_bytes: u64,
    need_bytes: u64,
    min_bytes: u64,
    max_bytes: u64,
    shares: u64,
    /// After it.
    next_target_bytes: u64,
    /// What its balloon is asked for, if it is.
    ask_bytes: Option<u64>,
    /// The target that it should have in the end.
    ideal_bytes: u64,
    action: &'static str,
    reason: String,
}

impl Line {
    fn new(guest: &Looked, decision: &Decision) -> Self {
        let (action, why) = words(decision);
        let seen = &guest.seen;
        Self {
            name: guest.name.clone(),
            target_bytes: seen.target_bytes,
            held_bytes: seen.held_bytes,
            need_bytes: seen.need_bytes,
            min_bytes: seen.limits.min_bytes,
            max_bytes: seen.limits.max_bytes,
            shares: seen.limits.shares,
            next_target_bytes: decision.target_bytes,
            ask_bytes: decision.ask_bytes,
            ideal_bytes: decision.ideal_bytes,
            action,
            reason: format!("{why}; {}", guest.how),
        }
    }

    fn changes(&self) -> bool {
        self.next_target_bytes != self.target_bytes || matches!(self.action, "late" | "impossible")
    }
}

fn words(decision: &Decision) -> (&'static str, String) {
    let ideal = Size(decision.ideal_bytes).rounded();
    match decision.why {
        Why::Near => ("stays", "near what it should have".to_owned()),
        Why::Shrinks => ("shrinks", format!("others need what is above {ideal}")),
        Why::Grows => ("grows", "what it needs is free".to_owned()),
        Why::GrowsInPart => ("grows", format!("it gets all that is free, on the way to {ideal}")),
        Why::Waits => ("waits", format!("it should have {ideal}, but others still hold it")),
        Why::Late => {
            ("late", "it was asked for memory and gives none back; it keeps it".to_owned())
        }
        Why::Impossible => ("impossible", "it cannot be asked; it keeps what it has".to_owned()),
    }
}

/// Returns a line for each guest, and the sum.
fn render(lines: &[Line], total_bytes: u64, all: bool) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| all || line.changes()) {
        let (from, to) = (
            Size(line.target_bytes).rounded(),
            Size(line.ask_bytes.unwrap_or(line.next_target_bytes)).rounded(),
        );
        let shown = if from == to { from } else { format!("{from} -> {to}") };
        let need = Size(line.need_bytes).rounded();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:16} {:10} {shown:18} needs {need}", line.name, line.action);
        let _ = writeln!(text, "                 {}", line.reason);
    }
    if all {
        let sum: u64 = lines.iter().map(|line| line.target_bytes.max(line.held_bytes)).sum();
        let (sum, total) = (Size(sum).rounded(), Size(total_bytes).rounded());
        let _ = writeln!(text, "{} guests have {sum} of {total}", lines.len());
    }
    text
}
