//! A guest on the software machine, with what happens to it recorded if that is wanted.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use zerosweep::{DecreaseError, Domain, Event, Gfn, Host, Order, Session, Statistics};
use zerosweep_events::{Detail, Writer, notes};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine, TouchError};

use super::{Experiment, tell_unrecorded};
use crate::cost::CostModel;
use crate::files;

/// The guest.
pub(super) struct RecordedGuest {
    pub(super) guest: SoftwareGuest,
    /// What had been done when it was built.
    pub(super) built: Statistics,
    trace: Option<Trace>,
}

/// A trace with modelled times.
struct Trace {
    writer: Writer<File>,
    file: PathBuf,
    costs: CostModel,
    failed: Option<io::Error>,
}

/// A trace begins at this time, because a counter that says 0 has not begun.
const BEGIN_NS: u64 = 1;

impl RecordedGuest {
    /// A guest that was just built.
    pub(super) fn new(guest: SoftwareGuest, experiment: &Experiment) -> Self {
        let max_pages = guest.domain.quantities().max;
        let costs = experiment.costs;
        let trace = experiment.events.as_ref().and_then(|file| match files::create_private(file) {
            Ok(out) => {
                let writer = Writer::begin(out, BEGIN_NS, max_pages);
                Some(Trace { writer, file: file.clone(), costs, failed: None })
            }
            Err(error) => {
                tell_unrecorded(file, &error);
                None
            }
        });
        let built = *guest.domain.statistics();
        Self { guest, built, trace }
    }

    /// The guest writes a word, `offset` bytes into a page.
    pub(super) fn write(&mut self, gfn: Gfn, offset: usize, value: u64) -> Result<(), TouchError> {
        let mfn = zerosweep_sim::touch(self, gfn)?;
        self.guest.machine.set_word(mfn, offset / 8, value);
        Ok(())
    }

    /// The guest gives a page back.
    pub(super) fn decrease(&mut self, gfn: Gfn) -> Result<u64, DecreaseError> {
        Session::new(self).decrease(gfn, Order::PAGE)
    }

    /// Ends the trace.
    pub(super) fn finish_trace(&mut self) {
        let Some(mut trace) = self.trace.take() else { return };
        let time_ns = trace.time_ns(&self.built, &self.guest.domain);
        let finished = match trace.failed.take() {
            None => trace.writer.finish(time_ns),
            Some(error) => Err(error),
        };
        if let Err(error) = finished {
            let good = trace.writer.written();
            let _ = trace.writer.get_mut().set_len(good);
            tell_unrecorded(&trace.file, &error);
        }
    }
}

impl Host for RecordedGuest {
    type Machine = SoftwareMachine;

    fn domain(&mut self) -> &mut Domain {
        &mut self.guest.domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        work(&mut self.guest.machine)
    }

    fn event(&mut self, event: Event) {
        let Some(trace) = &mut self.trace else { return };
        let time_ns = trace.time_ns(&self.built, &self.guest.domain);
        notes(event, &self.guest.domain, Detail::Xen, |note| {
            if trace.failed.is_none() {
                trace.failed = trace.writer.note(time_ns, &note).err();
            }
        });
    }
}

impl Trace {
    fn time_ns(&self, built: &Statistics, domain: &Domain) -> u64 {
        BEGIN_NS + (self.costs.seconds(built, domain.statistics()) * 1e9) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::contextualize_config;
    use zerosweep::{Config, Consolidation, InvalidTouch, Policy, Progress};

    use super::*;
    use crate::xentrace::{Event as Traced, Layout, PageStates, Reader, Summary, Tally};

    const PAGES: u64 = 6 * 512 + 100;
    const TARGET: u64 = 3 * 512;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Write { gfn: u64, value: u64 },
        Fill { superpage: u64, value: u64 },
        Decrease { gfn: u64 },
        DecreaseMany { superpage: u64, every: u64 },
        Retake { gfn: u64, pages: u64 },
        Discard { gfn: u64, pages: u64 },
        Sweep,
        Upkeep,
        Consolidate,
    }

    fn step() -> impl Strategy<Value = Step> {
        let gfn = 0..PAGES;
        prop_oneof![
            4 => (gfn.clone(), 0..2_u64).prop_map(|(gfn, value)| Step::Write { gfn, value }),
            3 => (0..6_u64, 0..2_u64).prop_map(|(superpage, value)| Step::Fill { superpage, value }),
            3 => gfn.clone().prop_map(|gfn| Step::Decrease { gfn }),
            3 => (0..6_u64, 1..5_u64)
                .prop_map(|(superpage, every)| Step::DecreaseMany { superpage, every }),
            1 => (gfn.clone(), 1..600_u64).prop_map(|(gfn, pages)| Step::Retake { gfn, pages }),
            1 => (gfn, 1..600_u64).prop_map(|(gfn, pages)| Step::Discard { gfn, pages }),
            1 => Just(Step::Sweep),
            1 => Just(Step::Upkeep),
            1 => Just(Step::Consolidate),
        ]
    }

    fn take(guest: &mut RecordedGuest, step: Step) {
        // What cannot be done changes nothing, and the trace has to say so.
        match step {
            Step::Write { gfn, value } => {
                let _ = guest.write(Gfn::new(gfn), 0, value);
            }
            Step::Fill { superpage, value } => {
                for gfn in superpage * 512..(superpage + 1) * 512 {
                    let _ = guest.write(Gfn::new(gfn), 8, value);
                }
            }
            Step::Decrease { gfn } => {
                let _ = guest.decrease(Gfn::new(gfn));
            }
            Step::DecreaseMany { superpage, every } => {
                for gfn in (superpage * 512..(superpage + 1) * 512).step_by(every as usize) {
                    let _ = guest.decrease(Gfn::new(gfn));
                }
            }
            Step::Retake { gfn, pages } => {
                Session::new(guest).retake(Gfn::new(gfn), pages.min(PAGES - gfn));
            }
            Step::Discard { gfn, pages } => {
                let _ = Session::new(guest).discard(Gfn::new(gfn), pages.min(PAGES - gfn));
            }
            Step::Sweep => {
                let mut next = 0;
                while Session::new(&mut *guest).sweep_full(&mut next, 16) == Progress::More {}
            }
            Step::Upkeep => {
                for _ in 0..64 {
                    if Session::new(&mut *guest).upkeep(4, true) == Progress::Done {
                        break;
                    }
                }
            }
            Step::Consolidate => {
                let mut work = Consolidation::default();
                while matches!(
                    Session::new(&mut *guest).consolidate(&mut work, 16),
                    Ok(Progress::More)
                ) {}
            }
        }
    }

    fn recorded(
        policy: Policy,
        upkeep: zerosweep::Upkeep,
        file: &std::path::Path,
    ) -> RecordedGuest {
        let config = Config {
            invalid_touch: InvalidTouch::Increase,
            upkeep,
            ..Config::new(PAGES, TARGET, policy)
        };
        let machine = SoftwareMachine::new(16 * 512);
        let guest = SoftwareGuest::on(machine, config).unwrap();
        let experiment = Experiment {
            guest: "linux".parse().unwrap(),
            policy,
            max_mem_bytes: PAGES * 4096,
            target_bytes: TARGET * 4096,
            vcpus: 1,
            seed: 1,
            costs: CostModel::default(),
            timeline: false,
            events: Some(file.to_owned()),
        };
        RecordedGuest::new(guest, &experiment)
    }

    fn traced_events(bytes: &[u8]) -> Vec<Traced> {
        let mut reader = Reader::new(bytes);
        let mut events = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            events.extend(Traced::decode(&record, Layout::Words).unwrap());
        }
        events
    }

    proptest! {
        #![proptest_config(contextualize_config(ProptestConfig::with_cases(60)))]

        /// Whatever happens, the records of the p2m say page by page what the engine has, and those
        /// of populate on demand are as many as it has counted.
        #[test]
        fn a_trace_says_what_the_engine_has(
            policy in proptest::sample::select(Policy::ALL.to_vec()),
            inline in any::<bool>(),
            steps in proptest::collection::vec(step(), 1..40),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("events.bin");
            let upkeep = if inline { zerosweep::Upkeep::Inline } else { zerosweep::Upkeep::Host };
            let mut guest = recorded(policy, upkeep, &file);
            for step in steps {
                take(&mut guest, step);
            }
            guest.finish_trace();
            let bytes = std::fs::read(&file).unwrap();
            let (summary, outcome) = Summary::read(&mut Reader::new(bytes.as_slice()), Layout::Words);
            prop_assert!(outcome.is_ok());
            let domain = &summary.domains[&1];
            let statistics = guest.guest.domain.statistics();
            prop_assert_eq!(domain.populates.of(9), statistics.populates_2m);
            prop_assert_eq!(domain.populates.of(0), statistics.populates_4k);
            prop_assert_eq!(domain.splinters, statistics.splinters);
            prop_assert_eq!(domain.decreases.pages(), statistics.pages_given_back);
            let q = guest.guest.domain.quantities();
            let expected = Tally {
                ram: q.populated,
                pod: q.entries,
                invalid: q.max - q.guest(),
                other: 0,
            };
            prop_assert_eq!(domain.pages_at_the_end(), Some(expected));

            // Page by page, and where it is.
            let mut states = PageStates::default();
            let mut frames = std::collections::HashMap::new();
            for (n, event) in traced_events(&bytes).into_iter().enumerate() {
                if let Traced::SetEntry { gfn, mfn, kind, order, .. } = event {
                    states.set(gfn, order, kind, n as u64);
                    for page in 0..1_u64 << order {
                        let ram = kind == crate::xentrace::PageKind::Ram;
                        frames.insert(gfn + page, ram.then_some(mfn.wrapping_add(page)));
                    }
                }
            }
            let moved = statistics.pages_consolidated > 0;
            for gfn in (0..PAGES).map(Gfn::new) {
                let has = match guest.guest.domain.p2m().get(gfn).0 {
                    zerosweep::Entry::Ram { mfn, .. } => Some(mfn.raw()),
                    _ => None,
                };
                let said = frames[&gfn.raw()];
                prop_assert_eq!(said.is_some(), has.is_some(), "{:?}", gfn);
                prop_assert!(moved || said == has, "{:?}: {:?}, but {:?}", gfn, said, has);
            }
        }
    }
}
