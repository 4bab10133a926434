//! A thread that adds a note never waits for the file: what does not fit is counted.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs::OpenOptions;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerosweep::{Config, Domain, Event, Gfn, Mfn, Order, Policy};
use zerosweep_events::{Batch, Detail, Journal, Packing, Recording, What};

fn domain() -> Domain {
    Domain::new(Config::new(1024, 512, Policy::Zerosweep)).unwrap()
}

fn populate(page: u64) -> Event {
    let gfn = Gfn::new(page);
    Event::Populate { gfn, mfn: Mfn::new(page), order: Order::PAGE, fault: gfn }
}

#[test]
fn what_does_not_fit_is_missing_in_one_place() {
    let (journal, domain) = (Journal::new(5, Detail::Xen), domain());
    (0..4).for_each(|page| journal.record(populate(page), &domain));
    let mut batch = Batch::with_capacity(5);
    journal.take(&mut batch);
    // A populate is two notes: what its page is now, and the populate.
    assert_eq!(batch.notes().len(), 5);
    let (lost, since_ns) = batch.lost().unwrap();
    assert_eq!(lost, 3);
    assert!(batch.notes().iter().all(|&(time_ns, _)| time_ns <= since_ns));
    // There is room again.
    journal.record(populate(9), &domain);
    journal.take(&mut batch);
    assert_eq!((batch.notes().len(), batch.lost()), (2, None));
    assert_eq!((batch.notes()[1].1.what, batch.notes()[1].1.gfn), (What::Populate, Gfn::new(9)));
    journal.close();
    journal.record(populate(1), &domain);
    journal.take(&mut batch);
    assert!(batch.notes().is_empty());
}

#[test]
fn times_rise_also_with_notes_of_several_threads() {
    let journal = Journal::new(10_000, Detail::Xen);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let domain = domain();
                (0..1000).for_each(|page| journal.record(populate(page), &domain));
            });
        }
    });
    let mut batch = Batch::with_capacity(10_000);
    journal.take(&mut batch);
    assert_eq!(batch.notes().len(), 8000);
    assert!(batch.notes().is_sorted_by_key(|&(time_ns, _)| time_ns));
}

fn recording(path: &str) -> Arc<Recording> {
    let file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    let recording = Arc::new(Recording::new(file, 1024, Detail::Xen, Packing::Plain));
    let thread = Arc::clone(&recording);
    std::thread::spawn(move || thread.run());
    recording
}

#[test]
fn a_full_disk_ends_the_recording_and_holds_up_nobody() {
    let (recording, domain) = (recording("/dev/full"), domain());
    let deadline = Instant::now() + Duration::from_secs(20);
    while recording.figures().error.is_none() {
        recording.journal().record(populate(1), &domain);
        assert!(Instant::now() < deadline, "nothing was told");
        std::thread::sleep(Duration::from_millis(1));
    }
    let error = recording.figures().error.unwrap();
    assert!(error.contains("No space left on device"), "{error}");
    let began = Instant::now();
    (0..1_000_000).for_each(|_| recording.journal().record(populate(1), &domain));
    assert!(began.elapsed() < Duration::from_secs(5));
    recording.finish();
    assert_eq!(recording.figures().error, Some(error));
}

#[test]
fn a_reader_that_cannot_follow_costs_records_and_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.bin");
    let file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
    // Nobody calls `run`: the end alone empties the journal.
    let (recording, domain) = (Recording::new(file, 1024, Detail::Xen, Packing::Plain), domain());
    let room = 1 << 20;
    (0..600_000).for_each(|page| recording.journal().record(populate(page % 1024), &domain));
    recording.finish();
    let figures = recording.figures();
    assert_eq!(figures.error, None);
    assert_eq!(figures.lost, 1_200_000 - room);
    assert_eq!(figures.bytes, std::fs::metadata(&path).unwrap().len());
    // The promise is two superpages; a run-state at both ends, and one behind the hole with it.
    assert_eq!(figures.records, room + 2 + 2 + 2);
}
