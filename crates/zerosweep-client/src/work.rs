//! Work on a running guest's memory: sweeps and consolidations.
//!
//! The agent works for a moment at each request and says where to go on. A caller that stops
//! between two requests keeps what was done.

use std::time::Instant;

use serde::Serialize;
use zerosweep_wire::{Operation, Status};

use crate::agent::{Client, ClientError};

/// The kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Look at every superpage, and take back those that are zero (rule [R8]).
    ///
    /// [R8]: zerosweep::rules#r8
    Sweep,
    /// Move single pages together, so that whole superpages become free (rule [R13]).
    ///
    /// [R13]: zerosweep::rules#r13
    Consolidate,
}

/// The outcome as a JSON document.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    name: &'a str,
    seconds: f64,
    superpages_reclaimed: u64,
    superpages_returned: u64,
    evacuations: u64,
    refills: u64,
    pages_moved: u64,
    bytes_scanned: u64,
    /// The guest's figures afterwards.
    status: &'a Status,
}

/// Finished work.
#[derive(Debug)]
pub struct Done {
    seconds: f64,
    before: Status,
    after: Status,
}

impl Done {
    /// The outcome for the guest `name`.
    pub fn report<'a>(&'a self, name: &'a str) -> Report<'a> {
        Report::new(name, self.seconds, &self.before, &self.after)
    }
}

/// Works until it is done; `step` is called before each request.
///
/// # Errors
/// When the agent does not answer, or refuses. What was done before that stays.
pub fn perform(
    work: Work,
    client: &mut Client,
    mut step: impl FnMut(),
) -> Result<Done, ClientError> {
    let before = client.request(Operation::Status)?;
    let began = Instant::now();
    let mut first = 0;
    let after = loop {
        step();
        let operation = match work {
            Work::Sweep => Operation::Sweep { first },
            Work::Consolidate => Operation::Consolidate { first },
        };
        let status = client.request(operation)?;
        match status.next {
            Some(next) => first = next,
            None => break status,
        }
    };
    Ok(Done { seconds: began.elapsed().as_secs_f64(), before, after })
}

impl<'a> Report<'a> {
    fn new(name: &'a str, seconds: f64, before: &Status, after: &'a Status) -> Self {
        let (old, new) = (&before.counters.engine, &after.counters.engine);
        Self {
            name,
            seconds,
            superpages_reclaimed: new.superpages_reclaimed - old.superpages_reclaimed,
            superpages_returned: new.superpages_returned - old.superpages_returned,
            evacuations: new.evacuations - old.evacuations,
            refills: new.refills - old.refills,
            pages_moved: new.pages_consolidated - old.pages_consolidated,
            bytes_scanned: new.bytes_scanned - old.bytes_scanned,
            status: after,
        }
    }

    /// The outcome as a sentence.
    pub fn told(&self, work: Work) -> String {
        let Self { name, seconds, superpages_reclaimed, superpages_returned, .. } = self;
        let back = format!("{superpages_returned} superpages went back to the host");
        match work {
            Work::Sweep => format!(
                "{name}: {superpages_reclaimed} zero superpages taken back, {} emptied of the last \
                 live pages, in {seconds:.2} s; {back}\n",
                self.evacuations
            ),
            Work::Consolidate => format!(
                "{name}: {} pages moved together, {} ranges are superpages again, in {seconds:.2} \
                 s; {back}\n",
                self.pages_moved, self.refills
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::sample_status;

    #[test]
    fn what_was_done_is_the_difference() {
        let (before, mut after) = (sample_status("vm"), sample_status("vm"));
        after.counters.engine.superpages_reclaimed += 3;
        after.counters.engine.pages_consolidated += 70;
        let report = Report::new("vm", 0.5, &before, &after);
        assert_eq!((report.superpages_reclaimed, report.pages_moved), (3, 70));
        assert!(report.told(Work::Sweep).starts_with("vm: 3 zero superpages"));
        assert!(report.told(Work::Consolidate).starts_with("vm: 70 pages moved together"));
    }
}
