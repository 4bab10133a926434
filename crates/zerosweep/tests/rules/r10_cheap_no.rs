//! [R10](zerosweep::rules#r10).

use zerosweep::{Config, Event, Gfn, Policy, Session};
use zerosweep_sim::{Recorder, SoftwareGuest};

use crate::support::{fill, guest};

#[test]
fn r10_a_no_is_cheap_the_next_time() {
    let mut guest = guest(8 * 512, 4 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..2048, 1);
    let mut next = 0;
    let _ = guest.session().sweep_full(&mut next, 4);
    let once = guest.domain.statistics().bytes_scanned;
    next = 0;
    let _ = guest.session().sweep_full(&mut next, 4);
    assert_eq!(guest.domain.statistics().bytes_scanned - once, 4 * 8, "one word each");
}

#[test]
fn r10_what_is_told_of_a_look_is_what_was_looked_at() {
    let mut guest = SoftwareGuest::new(Config::new(2048, 2048, Policy::Zerosweep)).unwrap();
    let mut looks = |values: [(u64, u64); 3]| {
        for (page, value) in values {
            // Deeper than a quick check looks.
            guest.write(Gfn::new(page), 2048, value).unwrap();
        }
        let mut session = Session::new(Recorder::new(&mut guest));
        let _ = session.sweep_full(&mut 0, 1);
        let (mut looked, mut live) = (Vec::new(), Vec::new());
        for event in &session.host().events {
            if let Event::Checked { gfn, checked: l, live: v } = event {
                looked.extend((0..64).filter(|bit| l >> bit & 1 == 1).map(|bit| gfn.raw() + bit));
                live.extend((0..64).filter(|bit| v >> bit & 1 == 1).map(|bit| gfn.raw() + bit));
            }
        }
        (looked, live)
    };
    assert_eq!(looks([(100, 1), (0, 0), (511, 0)]), ((0..=100).collect(), vec![100]));
    // It begins where something was found the last time, and goes round.
    assert_eq!(looks([(100, 0), (50, 1), (300, 1)]), ((100..=300).collect(), vec![300]));
    let round = (0..=50).chain(300..512).collect();
    assert_eq!(looks([(300, 0), (50, 1), (20, 0)]), (round, vec![50]));
}
