//! [R8](zerosweep::rules#r8).

use zerosweep::{Gfn, Order, Policy, Progress};

use crate::support::{fill, guest, state};

#[test]
fn r8_a_full_sweep_takes_every_zero_superpage_in_steps() {
    let mut guest = guest(8 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..4096, 0);
    guest.write(Gfn::new(5 * 512), 0, 1).unwrap();
    let mut next = 0;
    let mut steps = 0;
    while guest.session().sweep_full(&mut next, 3) == Progress::More {
        steps += 1;
    }
    assert_eq!((next, steps), (8, 2));
    assert_eq!(guest.domain.statistics().superpages_reclaimed, 7);
    assert_eq!(state(&guest), (7 * 512, 7 * 512, 4096));
}

#[test]
fn r8_the_hypercall_sweeps_once_before_the_first_page_is_given_back() {
    let mut guest = guest(8 * 512, 4 * 512, Policy::Hypercall2011);
    fill(&mut guest, 0..2048, 0);
    guest.session().decrease(Gfn::new(4000), Order::PAGE).unwrap();
    assert_eq!(guest.domain.statistics().superpages_reclaimed, 4);
    fill(&mut guest, 0..512, 0);
    guest.session().decrease(Gfn::new(4001), Order::PAGE).unwrap();
    assert_eq!(guest.domain.statistics().superpages_reclaimed, 4);
}
