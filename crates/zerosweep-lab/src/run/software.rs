//! A run on the software machine: deterministic, without any privilege, with modelled times.
//!
//! Virtual CPUs take turns of [`TURN`] stores, so that the result depends on the seed alone.

use anyhow::{Result, anyhow, bail};
use zerosweep::{Config, Gfn, PAGE_BYTES, Statistics, Superpage};
use zerosweep_sim::{SoftwareGuest, TouchError};

use super::recorded::RecordedGuest;
use super::{Experiment, Finished, Interrupted, Readings, Times, Watch, ZERO_WORDS};
use crate::guest::{Plan, Store};
use crate::ledger::{Expected, Ledger, Limit};
use crate::result::{Outcome, Run, TimeKind};
use crate::timeline::Recorder;

/// Stores of one virtual CPU before it is the next one's turn.
const TURN: usize = 64;
/// Moments that are sampled in a run.
const SAMPLES: u64 = 64;

/// Runs the guest.
///
/// # Errors
/// When the guest cannot be made, its memory was damaged (a defect), or `watch` ended the run.
pub fn on_software(experiment: &Experiment, watch: Watch<'_>) -> Result<Run> {
    let plan = experiment.plan();
    let shape = plan.shape();
    let config = Config::new(shape.max_pages, shape.target_pages, experiment.policy);
    let guest = SoftwareGuest::new(config).map_err(|error| anyhow!("{error}"))?;
    let mut following = Following {
        experiment,
        guest: RecordedGuest::new(guest, experiment),
        ledger: Ledger::new(shape.max_pages),
        recorder: Recorder::new(experiment.timeline),
        watch,
        done: 0,
        step: ((plan.stores() + plan.balloon().len() as u64) / SAMPLES).max(1),
        ballooning: false,
    };
    let outcome = following.boot(&plan)?;
    let booted = *following.guest.guest.domain.statistics();
    if outcome == Outcome::Ok {
        following.balloon(&plan)?;
    }
    following.sample()?;
    following.guest.finish_trace();
    following.verify()?;
    Ok(following.finish(outcome, booted, Limit::of(&plan)))
}

/// A guest on its way through its plan.
struct Following<'a> {
    experiment: &'a Experiment,
    guest: RecordedGuest,
    ledger: Ledger,
    recorder: Recorder,
    watch: Watch<'a>,
    done: u64,
    step: u64,
    ballooning: bool,
}

impl Following<'_> {
    fn boot(&mut self, plan: &Plan) -> Result<Outcome> {
        let mut vcpus: Vec<_> = (0..plan.shape().vcpus).map(|n| plan.boot_of(n)).collect();
        let mut idle = false;
        while !idle {
            idle = true;
            for vcpu in &mut vcpus {
                for store in vcpu.take(TURN) {
                    idle = false;
                    if !self.store(&store)? {
                        return Ok(Outcome::Exhausted);
                    }
                }
            }
        }
        Ok(Outcome::Ok)
    }

    /// False if there is no frame for the page.
    fn store(&mut self, store: &Store) -> Result<bool> {
        self.advance()?;
        match self.guest.write(store.gfn, usize::from(store.word) * 8, store.value) {
            Ok(()) => self.ledger.note(store),
            Err(TouchError::Exhausted) => return Ok(false),
            Err(error) => bail!("{:?} cannot be touched: {error}", store.gfn),
        }
        Ok(true)
    }

    fn balloon(&mut self, plan: &Plan) -> Result<()> {
        self.sample()?;
        self.ballooning = true;
        for &page in plan.balloon() {
            self.advance()?;
            let gfn = Gfn::new(page);
            self.ledger.give_back(gfn);
            let given = self.guest.decrease(gfn);
            given.map_err(|error| anyhow!("{gfn:?} cannot be given back: {error}"))?;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<()> {
        if self.done.is_multiple_of(self.step) {
            self.sample()?;
        }
        self.done += 1;
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        let RecordedGuest { guest, built, .. } = &self.guest;
        let (letters, domain) = (letters(guest), &guest.domain);
        let seconds = self.experiment.costs.seconds(built, domain.statistics());
        self.recorder.add(seconds, self.ballooning, &domain.quantities(), &letters);
        if (self.watch)(&letters).is_break() {
            bail!(Interrupted);
        }
        Ok(())
    }

    /// Looks from outside: a read of the guest's would populate what is PoD again.
    fn verify(&self) -> Result<()> {
        let machine = &self.guest.guest.machine;
        for gfn in (0..self.experiment.max_mem_bytes / PAGE_BYTES).map(Gfn::new) {
            let frame = machine.translate(gfn).map(|(mfn, _)| mfn);
            let found = |word: u16| frame.map_or(0, |mfn| machine.word(mfn, word.into()));
            let as_expected = match self.ledger.expected(gfn) {
                Expected::GivenBack => true,
                Expected::Zero => ZERO_WORDS.iter().all(|&word| found(word) == 0),
                Expected::Word { word, value } => found(word) == value,
            };
            if !as_expected {
                bail!("{gfn:?} was damaged: {:?} should be there", self.ledger.expected(gfn));
            }
        }
        self.guest.guest.domain.audit().map_err(|error| anyhow!("the audit failed: {error}"))
    }

    fn finish(self, outcome: Outcome, booted: Statistics, limit: Limit) -> Run {
        let Self { experiment, guest, ledger, recorder, .. } = self;
        let RecordedGuest { guest, built, .. } = guest;
        let end = *guest.domain.statistics();
        let readings = Readings {
            statistics: end,
            superpages_in_cache: guest.domain.cache().superpages(),
            singles_in_cache: guest.domain.cache().singles(),
            total_pages: guest.domain.quantities().total(),
            superpages_returned: guest.machine.pool().free_superpages(),
            letters: letters(&guest),
        };
        let times = Times {
            boot_seconds: experiment.costs.seconds(&built, &booted),
            balloon_seconds: experiment.costs.seconds(&booted, &end),
            kind: TimeKind::Modelled,
            fault_ns: None,
        };
        Finished {
            experiment,
            machine: "software",
            outcome,
            limit,
            ledger: &ledger,
            booted,
            end: readings,
            times,
            timeline: recorder.finish(),
        }
        .assemble()
    }
}

fn letters(guest: &SoftwareGuest) -> Vec<u8> {
    let p2m = guest.domain.p2m();
    (0..p2m.superpages()).map(|n| p2m.state(Superpage::new(n)).letter()).collect()
}
