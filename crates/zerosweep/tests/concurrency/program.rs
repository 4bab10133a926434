//! What the threads of one schedule do, drawn from a seed.

use zerosweep_sim::splitmix64;

use crate::shared::{GUESTS, PAGES};

/// One step of a guest. Pages are numbers of its own pages, ascending.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Writes a word of one page: 0, or a pattern.
    Write(u64, bool),
    Read(u64),
    /// Writes zeros to those pages, out of a number of them, that were ever written.
    Scrub(u64, u64),
    /// Gives pages back, of this order where the guest owns the whole run.
    Decrease(u64, u8),
    /// Gives a number of pages back, one by one.
    Balloon(u64, u64),
    Retake(u64, u64),
    Discard(u64, u64),
}

/// One step of the thread that keeps the domain in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    Sweep,
    Upkeep(bool),
    Consolidate,
    Target(u64),
}

/// One step of the thread that stands in everybody's way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hindrance {
    /// A device holds this frame, or no longer does.
    Busy(u64, bool),
    /// The machine's next calls work, up to the first number. Then the second number of calls fail.
    Fail(u64, u64),
    /// A superpage is mapped in pieces, after a number of calls.
    Pieces(u64),
}

#[derive(Debug)]
pub(crate) struct Program {
    #[expect(dead_code, reason = "printed when a schedule fails")]
    seed: u64,
    pub(crate) target: u64,
    /// Pages that each guest has written before, and how far apart they are.
    pub(crate) boots: [(u64, u64); GUESTS],
    pub(crate) guests: Vec<Vec<Step>>,
    pub(crate) keeper: Vec<Task>,
    /// Empty: everything works.
    pub(crate) hindrances: Vec<Hindrance>,
    /// Pages that a thread of the host reads.
    pub(crate) reads: Vec<u64>,
}

impl Program {
    pub(crate) fn new(seed: u64) -> Self {
        let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let boots = [(); GUESTS].map(|()| {
            let count = [0, 30, 100, 300][draw.below(4) as usize];
            (count, 1 + draw.below(11))
        });
        // Half of the programs never change the target: in these the cap holds at every moment.
        let changes = draw.below(2) == 0;
        let target = 400 + draw.below(1400);
        let mut guests = Vec::new();
        for _ in 0..GUESTS {
            let steps = 8 + draw.below(16);
            guests.push((0..steps).map(|_| step(&mut draw)).collect());
        }
        let tasks = 4 + draw.below(8);
        let keeper = (0..tasks).map(|_| task(&mut draw, changes)).collect();
        Self { seed, target, boots, guests, keeper, hindrances: Vec::new(), reads: Vec::new() }
    }

    /// The same, but frames are busy and calls of the machine fail.
    pub(crate) fn hindered(seed: u64) -> Self {
        let mut draw = Draw(seed.wrapping_mul(0xd1b5_4a32_d192_ed03));
        let count = 4 + draw.below(24);
        let hindrances = (0..count).map(|_| hindrance(&mut draw)).collect();
        Self { hindrances, ..Self::new(seed) }
    }

    /// The same as [`Program::new`], and the host reads meanwhile.
    pub(crate) fn read_out(seed: u64) -> Self {
        let mut draw = Draw(seed.wrapping_mul(0xa076_1d64_78bd_642f));
        let count = 8 + draw.below(40);
        let reads = (0..count).map(|_| draw.below(PAGES)).collect();
        Self { reads, ..Self::new(seed) }
    }
}

fn step(draw: &mut Draw) -> Step {
    let page = draw.page();
    match draw.below(20) {
        0..=5 => Step::Write(page, draw.below(4) == 0),
        6..=8 => Step::Read(page),
        9..=10 => Step::Scrub(page, 1 + draw.below(600)),
        11..=12 => Step::Decrease(page, [0, 0, 3, 9, 9][draw.below(5) as usize]),
        13..=15 => Step::Balloon(page, 1 + draw.below(24)),
        16..=17 => Step::Retake(page, 1 + draw.below(24)),
        _ => Step::Discard(page, [1, 1, 7, 512][draw.below(4) as usize]),
    }
}

fn task(draw: &mut Draw, changes: bool) -> Task {
    match draw.below(if changes { 10 } else { 7 }) {
        0..=1 => Task::Sweep,
        2..=4 => Task::Upkeep(draw.below(2) == 0),
        5..=6 => Task::Consolidate,
        _ => Task::Target(400 + draw.below(1600)),
    }
}

fn hindrance(draw: &mut Draw) -> Hindrance {
    match draw.below(8) {
        0..=2 => Hindrance::Busy(draw.below(2 * PAGES), true),
        3 => Hindrance::Busy(draw.below(2 * PAGES), false),
        4..=6 => Hindrance::Fail(draw.below(40), 1 + draw.below(3)),
        _ => Hindrance::Pieces(draw.below(20)),
    }
}

struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        let drawn = splitmix64(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        drawn
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Some page of a guest's own, most often one of those that lie between others' pages.
    fn page(&mut self) -> u64 {
        let own = PAGES / GUESTS as u64;
        let shared = 512 + self.below(own - 512);
        if self.below(4) == 0 { self.below(own) } else { shared }
    }
}
