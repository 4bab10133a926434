//! [R20](zerosweep::rules#r20).

use zerosweep::{Event, Gate, Gfn, Mfn, Order, Policy, Progress};

use crate::support::{fill, guest, record};

#[test]
fn r20_events_tell_the_whole_story() {
    let mut guest = guest(2048, 1024, Policy::Rfc2011(Gate::Debt));
    let events = record(&mut guest, |session| {
        let _ = session.fault(Gfn::new(77)).unwrap();
        session.decrease(Gfn::new(2000), Order::PAGE).unwrap();
        session.decrease(Gfn::new(78), Order::PAGE).unwrap();
    });
    let mfn = Mfn::new(0);
    let superpage = Order::SUPERPAGE;
    assert_eq!(
        events,
        [
            Event::Populate { gfn: Gfn::new(0), mfn, order: superpage, fault: Gfn::new(77) },
            Event::Remove { gfn: Gfn::new(2000), order: Order::PAGE },
            Event::Reclaim { gfn: Gfn::new(0), mfn, order: superpage },
            Event::Remove { gfn: Gfn::new(78), order: Order::PAGE },
        ]
    );
}

/// What a check saw of pages that it does not reclaim.
#[test]
fn r20_looks_tell_what_checks_saw() {
    let looks = |events: Vec<Event>| {
        let look = |event| match event {
            Event::Checked { gfn, checked, live } => Some((gfn.raw(), checked, live)),
            _ => None,
        };
        events.into_iter().filter_map(look).collect::<Vec<_>>()
    };
    // Ours, when it makes up a superpage of 512 pages of which three are live.
    let mut ours = guest(2048, 1024, Policy::Zerosweep);
    fill(&mut ours, 0..512, 0);
    for (gfn, value) in [(3, 1), (64, 1), (511, 1)] {
        ours.write(Gfn::new(gfn), 0, value).unwrap();
    }
    let before = *ours.domain.statistics();
    let events = record(&mut ours, |session| {
        let mut next = 0;
        while session.sweep_full(&mut next, 16) == Progress::More {}
    });
    let evacuated = events.iter().any(|event| matches!(event, Event::Evacuate { live: 3, .. }));
    let told = looks(events);
    assert!(evacuated, "{told:?}");
    let expected: Vec<_> = (0..8)
        .map(|group: u64| (group * 64, u64::MAX, [8, 1, 0, 0, 0, 0, 0, 1 << 63][group as usize]))
        .collect();
    assert_eq!(told, expected);
    assert_eq!(ours.domain.statistics().zero_checks_2m, before.zero_checks_2m + 1);
    // Xen's: the first live page is told, and that what comes before it is zero is not known while
    // the guest may write.
    let mut xen = guest(2048, 1024, Policy::Xen2016);
    fill(&mut xen, 0..512, 0);
    xen.write(Gfn::new(70), 0, 1).unwrap();
    fill(&mut xen, 512..513, 1);
    let events = record(&mut xen, |session| {
        let _ = session.fault(Gfn::new(1024));
    });
    assert!(looks(events).contains(&(64, 1 << 6, 1 << 6)));
}
