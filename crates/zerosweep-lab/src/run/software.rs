//! A run on the software machine: deterministic, without any privilege, with modelled times.

use anyhow::{Result, anyhow, bail};
use zerosweep::{Config, Entry, Gfn, Order, Superpage};
use zerosweep_sim::{SoftwareGuest, TouchError};

use super::{Experiment, Readings, Times, assemble};
use crate::cost::CostModel;
use crate::result::{Outcome, Run, TimeKind};

/// Runs the guest. `watch` is given the superpage map, a letter each, from time to time.
///
/// # Errors
/// When such a guest cannot be, or it was damaged (a defect).
pub fn on_software(experiment: &Experiment, mut watch: impl FnMut(&[u8])) -> Result<Run> {
    let config = Config::new(experiment.max_pages(), experiment.target_pages(), experiment.policy);
    let mut guest = SoftwareGuest::new(config).map_err(|error| anyhow!("{error}"))?;
    let built = *guest.domain.statistics();
    let step = (experiment.max_pages() / 64).max(1);
    let mut outcome = Outcome::Ok;
    for page in 0..experiment.max_pages() {
        match guest.write(Gfn::new(page), 0, experiment.guest.value(page)) {
            Ok(()) => {}
            Err(TouchError::Exhausted) => {
                outcome = Outcome::Exhausted;
                break;
            }
            Err(error) => bail!("page {page} cannot be touched: {error}"),
        }
        if page % step == 0 {
            watch(&letters(&guest));
        }
    }
    let booted = *guest.domain.statistics();
    if outcome == Outcome::Ok {
        for page in experiment.target_pages()..experiment.max_pages() {
            let given = guest.session().decrease(Gfn::new(page), Order::PAGE);
            given.map_err(|error| anyhow!("page {page} cannot be given back: {error}"))?;
            if page % step == 0 {
                watch(&letters(&guest));
            }
        }
        verify(&mut guest, experiment)?;
    }
    guest.domain.audit().map_err(|error| anyhow!("the audit failed: {error}"))?;
    watch(&letters(&guest));
    let model = CostModel::default();
    let readings = Readings {
        statistics: *guest.domain.statistics(),
        quantities: guest.domain.quantities(),
        superpages_in_guest: letters(&guest).iter().filter(|&&letter| letter == b'W').count()
            as u64,
        superpages_in_cache: guest.domain.cache().superpages(),
        superpages_returned: guest.machine.pool().free_superpages(),
    };
    let times = Times {
        boot_seconds: model.seconds(&built, &booted),
        balloon_seconds: model.seconds(&booted, &readings.statistics),
        kind: TimeKind::Modelled,
        fault_ns: None,
    };
    Ok(assemble(experiment, "software", outcome, &booted, &readings, &times))
}

fn verify(guest: &mut SoftwareGuest, experiment: &Experiment) -> Result<()> {
    for page in 0..experiment.target_pages() {
        // Looked at from outside: a read of the guest's would populate what is PoD again.
        let found = match guest.machine.translate(Gfn::new(page)) {
            Some((mfn, _)) => guest.machine.word(mfn, 0),
            None => 0,
        };
        if found != experiment.guest.value(page) {
            bail!("page {page} was damaged: {found} is there");
        }
    }
    Ok(())
}

fn letters(guest: &SoftwareGuest) -> Vec<u8> {
    let p2m = guest.domain.p2m();
    let letter = |superpage| match p2m.whole(superpage) {
        Some(Entry::Ram { .. }) => b'W',
        Some(Entry::Pod) => b'p',
        Some(_) => b'.',
        None if p2m.tally(superpage).ram > 0 => b'b',
        None => b'p',
    };
    (0..p2m.superpages()).map(|n| letter(Superpage::new(n))).collect()
}
