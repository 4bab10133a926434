//! What is written is read: records, times, and where some are missing.

use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use proptest::prelude::*;
use proptest::test_runner::contextualize_config;
use zerosweep::{Gfn, Mfn, Order};
use zerosweep_events::{Kind, Note, Packing, What, Writer};
use zerosweep_lab::xentrace::{Event, Layout, PageKind, Reader, guess};

const MAX_PAGES: u64 = (1 << 18) + 512 + 3;
const DOMAIN: u32 = 1;

fn note() -> impl Strategy<Value = Note> {
    let what = prop_oneof![
        Just(What::Set(Kind::Ram)),
        Just(What::Set(Kind::Pod)),
        Just(What::Set(Kind::Invalid)),
        Just(What::Decrease),
        Just(What::Populate),
        Just(What::Reclaim),
        Just(What::Splinter),
        any::<(u64, u64)>().prop_map(|(looked, live)| What::Look { looked, live: looked & live }),
    ];
    (what, 0..1_u64 << 40, 0..1_u64 << 48, 0..=18_u8).prop_map(|(what, gfn, mfn, order)| {
        let has_frame = matches!(what, What::Set(Kind::Ram) | What::Populate | What::Reclaim);
        let order = Order::new(order).unwrap();
        Note { what, gfn: Gfn::new(gfn), mfn: has_frame.then(|| Mfn::new(mfn)), order }
    })
}

fn expected(note: &Note) -> Event {
    let (gfn, order, domain) = (note.gfn.raw(), note.order.raw(), DOMAIN);
    let mfn = note.mfn.map_or(u64::MAX, Mfn::raw);
    match note.what {
        What::Set(kind) => {
            let kind = match kind {
                Kind::Ram => PageKind::Ram,
                Kind::Invalid => PageKind::Invalid,
                Kind::Pod => PageKind::Pod,
            };
            Event::SetEntry { gfn, mfn, kind, domain, order }
        }
        What::Decrease => Event::Decrease { gfn, domain, order },
        What::Populate => Event::Populate { gfn, mfn, domain, order },
        What::Reclaim => Event::Reclaim { gfn, mfn, domain, order },
        What::Splinter => Event::Splinter { gfn, domain, order },
        What::Look { looked, live } => Event::Look { gfn, looked, live, domain },
    }
}

/// Times and events, those of the beginning left out; and how many records are missing.
fn read(trace: &[u8]) -> (Vec<(u64, Event)>, u64) {
    let mut reader = Reader::new(trace);
    let mut events = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        let tsc = record.tsc;
        events.extend(Event::decode(&record, Layout::Words).unwrap().map(|event| (tsc, event)));
    }
    // One of order 18, one of order 9, three pages.
    let promised: u64 = events
        .drain(..5)
        .map(|(_, event)| match event {
            Event::SetEntry { kind: PageKind::Pod, order, .. } => 1 << order,
            other => panic!("{other:?} where the guest is promised"),
        })
        .sum();
    assert_eq!(promised, MAX_PAGES);
    (events, reader.lost())
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        steps in proptest::collection::vec((0..1_u64 << 34, note()), 0..4000),
        hole in any::<prop::sample::Index>(),
        missing in 1..=u32::MAX,
    ) {
        let mut trace = Vec::new();
        let mut writer = Writer::begin(&mut trace, 1, MAX_PAGES);
        let (mut now, mut wanted) = (1, Vec::new());
        let hole = hole.index(steps.len() + 1);
        for (n, (pause, note)) in steps.iter().enumerate() {
            if n == hole {
                writer.lost(now, missing.into(), now);
            }
            now += pause;
            writer.note(now, note).unwrap();
            wanted.push((now, expected(note)));
        }
        writer.finish(now).unwrap();
        let (written, records) = (writer.written(), writer.records());
        drop(writer);
        prop_assert_eq!(written, trace.len() as u64);
        let extra = if hole < steps.len() { 2 } else { 0 };
        prop_assert_eq!(records, steps.len() as u64 + 5 + 2 + extra);
        let (events, lost) = read(&trace);
        prop_assert_eq!(events, wanted);
        prop_assert_eq!(lost, if hole < steps.len() { missing.into() } else { 0 });
        let guess = guess(&mut Reader::new(trace.as_slice())).unwrap();
        prop_assert_eq!(guess.layout, Layout::Words);
    }
}

/// Unpacked as far as it goes, and whether it goes to the end.
fn unpacked(packed: &[u8]) -> (Vec<u8>, bool) {
    let mut trace = Vec::new();
    let whole = MultiGzDecoder::new(packed).read_to_end(&mut trace).is_ok();
    (trace, whole)
}

/// From this number of records on, packing makes a window shorter; with fewer it may grow.
const WORTH_PACKING: usize = 32;
/// The most bytes by which packing makes a window longer: header and end of a gzip member, and the
/// headers of its stored blocks.
const MEMBER_BYTES: usize = 64;

/// Packs a trace of `steps` and reads it: packed, it is the same but for the times; and wherever it
/// is cut, all windows before can be read.
fn pack_and_read(
    steps: &[(u64, Note)],
    flush_every: usize,
    cut: impl FnOnce(usize) -> usize,
) -> Result<(), TestCaseError> {
    let mut packed = Vec::new();
    let mut writer = Writer::begin_packed(&mut packed, Packing::Gzip, 1, MAX_PAGES);
    let (mut now, mut wanted) = (1, Vec::new());
    // How long the file was, and how many notes were in it.
    let mut ends = vec![(0, 0)];
    for (n, (pause, note)) in steps.iter().enumerate() {
        now += pause;
        writer.note(now, note).unwrap();
        wanted.push((now, expected(note)));
        if n % flush_every == 0 {
            writer.flush().unwrap();
            ends.push((writer.written(), n + 1));
        }
    }
    writer.finish(now).unwrap();
    ends.push((writer.written(), steps.len()));
    drop(writer);
    let (trace, whole) = unpacked(&packed);
    prop_assert!(whole);
    let (length, plain) = (packed.len(), trace.len());
    let windows = ends.len() + plain / (64 << 10);
    prop_assert!(length <= plain + windows * MEMBER_BYTES, "{} packed, {} plain", length, plain);
    if flush_every.min(steps.len()) >= WORTH_PACKING {
        prop_assert!(length < plain, "{} packed, {} plain", length, plain);
    }
    let (events, _) = read(&trace);
    prop_assert_eq!(events.len(), wanted.len());
    for ((time_ns, event), (now, wanted)) in events.iter().zip(&wanted) {
        prop_assert_eq!(event, wanted);
        prop_assert!(time_ns <= now && now - time_ns < 1 << 16, "{} for {}", time_ns, now);
    }
    let cut = cut(packed.len());
    let (trace, whole) = unpacked(&packed[..cut]);
    let (_, notes) = *ends.iter().rfind(|(length, _)| *length <= cut as u64).unwrap();
    let mut reader = Reader::new(trace.as_slice());
    let mut count = 0;
    while let Ok(Some(record)) = reader.next_record() {
        count += usize::from(Event::decode(&record, Layout::Words).unwrap().is_some());
    }
    prop_assert!(count >= notes + if notes > 0 { 5 } else { 0 }, "{} of {}", count, notes);
    prop_assert!(!whole || ends.iter().any(|(length, _)| *length == cut as u64));
    Ok(())
}

proptest! {
    #![proptest_config(contextualize_config(ProptestConfig::with_cases(24)))]

    #[test]
    fn what_is_packed_is_read(
        steps in proptest::collection::vec((0..1_u64 << 20, note()), 1..3000),
        flush_every in 1..400_usize,
        cut in any::<prop::sample::Index>(),
    ) {
        pack_and_read(&steps, flush_every, |length| cut.index(length))?;
    }
}

/// A window of one or two records that have nothing in common is longer when it is packed.
#[test]
fn windows_of_few_records_packed_are_read() {
    let mixed = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let populate = |n: u64| Note {
        what: What::Populate,
        gfn: Gfn::new(mixed(n) >> 24),
        mfn: Some(Mfn::new(mixed(n + 1000) >> 16)),
        order: Order::PAGE,
    };
    let steps: Vec<_> = (1..=200).map(|n| (mixed(n) >> 44, populate(n))).collect();
    for (flush_every, part) in (1..=2).flat_map(|every| (0..16).map(move |part| (every, part))) {
        pack_and_read(&steps, flush_every, |length| length * part / 16).unwrap();
    }
}

#[test]
fn a_window_is_not_longer_than_it_says() {
    let mut trace = Vec::new();
    let mut writer = Writer::begin(&mut trace, 1, MAX_PAGES);
    let note = Note { what: What::Decrease, gfn: Gfn::new(7), mfn: None, order: Order::PAGE };
    for n in 0..100_000 {
        writer.note(n, &note).unwrap();
    }
    writer.finish(100_000).unwrap();
    let (mut at, mut windows) = (0, 0);
    while at < trace.len() {
        let word = |n: usize| u32::from_le_bytes(trace[at + n..at + n + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (0x2001_f003, 0), "a window of CPU 0 begins at {at}");
        at += 12 + word(8) as usize;
        windows += 1;
    }
    assert_eq!(at, trace.len());
    assert!(windows > 10, "{windows} windows");
}
