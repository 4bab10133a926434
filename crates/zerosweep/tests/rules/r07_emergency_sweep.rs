//! [R7](zerosweep::rules#r7).

use zerosweep::{Config, Entry, Fault, Gfn, Policy, Superpage};
use zerosweep_sim::SoftwareGuest;

use crate::support::{fill, guest};

#[test]
fn r7_the_sweep_is_bounded_wraps_and_reaches_both_ends() {
    let config = Config {
        fault_budget_bytes: 64 << 10,
        ..Config::new(16 * 512, 8 * 512, Policy::Zerosweep)
    };
    for zero_at in [0, 3, 7] {
        let mut guest = SoftwareGuest::new(config).unwrap();
        // Dirty deep in the page: every check that is not spared costs its bytes.
        for superpage in 0..8 {
            // More pages than are worth copying elsewhere.
            for page in (superpage * 512 + 440)..(superpage + 1) * 512 {
                let value = u64::from(superpage != zero_at);
                guest.write(Gfn::new(page), 2048, value).unwrap();
            }
        }
        let mut steps = 0;
        loop {
            let before = guest.domain.statistics().bytes_scanned;
            let fault = guest.session().fault(Gfn::new(8 * 512)).unwrap();
            let scanned = guest.domain.statistics().bytes_scanned - before;
            assert!(scanned <= (64 << 10) + (2 << 20) + (128 << 10), "{scanned} bytes at once");
            steps += 1;
            match fault {
                Fault::Again => assert!(steps < 1000),
                Fault::Present { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(guest.domain.p2m().whole(Superpage::new(zero_at)), Some(Entry::Pod));
        guest.domain.audit().unwrap();
    }
}

#[test]
fn r7_a_guest_that_defeats_the_hint_is_bounded_by_the_budget() {
    let budget = 1 << 20;
    let config =
        Config { fault_budget_bytes: budget, ..Config::new(64 * 512, 32 * 512, Policy::Zerosweep) };
    let mut guest = SoftwareGuest::new(config).unwrap();
    // 100 pages of each superpage are not zero, deep in the page.
    for superpage in 0..32 {
        for page in 0..100 {
            guest.write(Gfn::new(superpage * 512 + page * 5), 2048, 1).unwrap();
        }
    }
    let mut served = 0;
    for step in 0..3000 {
        // Wherever a check found something, there is nothing any more: it has moved on.
        for superpage in (0..32).map(Superpage::new) {
            if let Some(word) = guest.domain.p2m().hint(superpage) {
                let page = superpage.page(word as usize / 512);
                let offset = word as usize % 512 * 8;
                let at = if offset == 2048 { 1024 } else { 2048 };
                if let Some((mfn, _)) = guest.machine.translate(page) {
                    guest.machine.set_word(mfn, offset / 8, 0);
                    guest.machine.set_word(mfn, at / 8, 1);
                }
            }
        }
        let before = *guest.domain.statistics();
        let fault = guest.session().fault(Gfn::new(32 * 512 + served * 512)).unwrap();
        let after = *guest.domain.statistics();
        let work =
            after.bytes_scanned - before.bytes_scanned + after.bytes_copied - before.bytes_copied;
        // What is looked at last is finished: a superpage, and its copies.
        assert!(work <= budget + (3 << 20), "{work} bytes at once in step {step}");
        match fault {
            Fault::Present { .. } => served += 1,
            Fault::Again => {}
            Fault::Exhausted => break,
            Fault::InTransit => panic!("nobody else is here"),
        }
        if served == 16 {
            break;
        }
    }
    assert!(served > 0);
    guest.domain.audit().unwrap();
}

#[test]
fn r7_singles_are_found_when_no_superpage_is_zero() {
    let mut guest = guest(4096, 1024, Policy::Zerosweep);
    fill(&mut guest, 0..1024, 1);
    guest.write(Gfn::new(0), 0, 0).unwrap();
    guest.write(Gfn::new(2000), 0, 5).unwrap();
    assert_eq!(guest.domain.p2m().get(Gfn::new(0)).0, Entry::Pod, "gfn 0 too");
    assert_eq!(guest.read(Gfn::new(2000), 0), Ok(5));
    assert_eq!(guest.read(Gfn::new(1), 0), Ok(1));
}
