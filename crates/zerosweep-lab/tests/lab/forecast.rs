//! Rule [R15]: before a guest is exhausted, an event and the forecast say how much it can still
//! touch. On the guest that defeats checks, because there the forecast has most to be wrong about.
//!
//! [R15]: zerosweep::rules#r15

use zerosweep::{Config, Domain, Event, Exclusive, Fault, Gfn, Host, Policy, Session};
use zerosweep_lab::guest::{DEFAULT_SEED, Shape, parse_list};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

const MAX_PAGES: u64 = 128 * 512;
const TARGET_PAGES: u64 = 48 * 512;

/// Keeps the forecasts that are told: pages that are certain, and likely.
struct Listener<'a> {
    inner: Exclusive<'a, SoftwareMachine>,
    told: &'a mut Vec<(u64, u64)>,
}

impl Host for Listener<'_> {
    type Machine = SoftwareMachine;

    fn domain(&mut self) -> &mut Domain {
        self.inner.domain()
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        self.inner.machine(work)
    }

    fn event(&mut self, event: Event) {
        if let Event::Low { certain, likely } = event {
            self.told.push((certain, likely));
        }
    }
}

struct Guest {
    guest: SoftwareGuest,
    told: Vec<(u64, u64)>,
    /// Faults that were served since something was told last.
    served: u64,
}

impl Guest {
    /// False if it is exhausted.
    fn store(&mut self, gfn: Gfn, word: u16, value: u64) -> bool {
        let told = self.told.len();
        let certain = self.guest.domain.forecast().certain;
        loop {
            if let Some((mfn, _)) = self.guest.machine.translate(gfn) {
                self.guest.machine.set_word(mfn, usize::from(word), value);
                break;
            }
            let inner = Exclusive::new(&mut self.guest.domain, &mut self.guest.machine);
            let mut session = Session::new(Listener { inner, told: &mut self.told });
            match session.fault(gfn).unwrap() {
                Fault::Exhausted => {
                    assert_eq!(certain, 0, "a page was certain, and is not there");
                    return false;
                }
                Fault::Present { .. } => self.served += 1,
                Fault::Again | Fault::InTransit => {}
            }
        }
        if self.told.len() > told {
            self.served = 0;
        }
        true
    }
}

/// Boots a guest, then has it write to every page: it gets as far as its target and no further.
fn exhaust(name: &str, policy: Policy) -> Guest {
    let model = parse_list(name).unwrap().remove(0);
    let shape =
        Shape { max_pages: MAX_PAGES, target_pages: TARGET_PAGES, vcpus: 1, seed: DEFAULT_SEED };
    let guest = SoftwareGuest::new(Config::new(MAX_PAGES, TARGET_PAGES, policy)).unwrap();
    let mut guest = Guest { guest, told: Vec::new(), served: 0 };
    let plan = model.plan(&shape);
    let booted = plan.boot().all(|s| guest.store(s.gfn, s.word, s.value));
    let all = booted && (0..MAX_PAGES).all(|page| guest.store(Gfn::new(page), 7, 1));
    assert!(!all, "{name}, {policy}: it has no more than its target");
    guest.guest.domain.audit().unwrap();
    guest
}

#[test]
fn a_hostile_guest_is_told_before_it_is_exhausted() {
    println!("what was told last, and the faults that were served after it:");
    for name in ["hostile", "hostile:deep=1", "hostile:moves=0"] {
        for policy in [Policy::Zerosweep, Policy::Xen2016] {
            let Guest { told, served, .. } = exhaust(name, policy);
            let &(certain, likely) = told.last().expect("it is told before");
            println!("  {name}, {policy}: {certain} pages certain, {likely} likely; {served}");
            assert!(certain + likely < TARGET_PAGES / 16, "told before it was low");
        }
    }
}
