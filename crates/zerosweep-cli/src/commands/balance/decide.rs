//! Decides how much memory each guest gets: a pure function of what was seen.
//!
//! ```text
//! fixed    guests that do not follow keep what they have: it cannot be given to others
//! ideal    each guest its minimum; then up to its need, by shares; then the rest, by shares
//! keep     a target near its ideal stays (hysteresis), unless memory is scarce
//! shrink   the balloon is asked, and the target goes down with it
//! grow     only from memory that no guest holds; guests that are short first
//! ```
//!
//! A guest never grows into memory that another one still holds, so the sum of targets never
//! passes the total: memory that one round takes away is given in a later round.

/// Targets are multiples of this.
pub(super) const QUANTUM: u64 = 4 << 20;
/// A target that differs from its ideal by less than this part stays.
const BAND_DIVISOR: u64 = 16;

/// The limits of a guest's target. Both are multiples of [`QUANTUM`], and the minimum is not above
/// the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) min_bytes: u64,
    pub(super) max_bytes: u64,
    /// This guest's part of scarce memory, in proportion to the others; at least 1.
    pub(super) shares: u64,
}

/// Whether a guest does what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Following {
    /// It does.
    Yes,
    /// It has not given back what it was asked for.
    Late,
    /// It cannot be asked, or does not answer.
    Impossible,
}

/// One guest, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) limits: Limits,
    pub(super) target_bytes: u64,
    /// The memory of the host that it has, or may take at any moment.
    pub(super) held_bytes: u64,
    /// The memory that its balloon has left it.
    pub(super) actual_bytes: u64,
    /// The estimate of what it needs.
    pub(super) need_bytes: u64,
    /// It waits for memory, or is about to.
    pub(super) is_short: bool,
    pub(super) following: Following,
}

impl Seen {
    /// Returns the memory that cannot be promised to others.
    fn committed(&self) -> u64 {
        self.target_bytes.max(self.held_bytes)
    }

    fn desire(&self) -> u64 {
        let need = self.need_bytes.div_ceil(QUANTUM).saturating_mul(QUANTUM);
        need.clamp(self.limits.min_bytes, self.limits.max_bytes)
    }
}

/// The reason for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The target is at its ideal, or near it.
    Near,
    /// Others need it more.
    Shrinks,
    /// It needs more, and all of that is free.
    Grows,
    /// It needs more than is free at the moment.
    GrowsInPart,
    /// It needs more, and nothing is free yet.
    Waits,
    /// It does not follow.
    Late,
    /// It cannot be asked.
    Impossible,
}

/// The decision about one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// The size that its balloon is asked for; `None` when it is not asked.
    pub(super) ask_bytes: Option<u64>,
    /// The engine's target after this round.
    pub(super) target_bytes: u64,
    /// The target that it should have in the end.
    pub(super) ideal_bytes: u64,
    pub(super) why: Why,
}

/// The minima of the guests are more than the total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooSmall {
    /// The sum of the minima, and of what guests hold that do not follow.
    pub(super) least_bytes: u64,
}

/// Decides one round. Returns a decision for each guest, in the same order.
///
/// # Errors
/// When `total_bytes` is less than the guests' minima. Nothing should be changed then.
pub(super) fn decide(total_bytes: u64, guests: &[Seen]) -> Result<Vec<Decision>, TooSmall> {
    let ideals = ideals(total_bytes, guests)?;
    let targets = guests.iter().map(|guest| guest.target_bytes).fold(0, u64::saturating_add);
    let is_tight = targets > total_bytes
        || guests.iter().any(|guest| guest.is_short || guest.target_bytes < guest.limits.min_bytes);
    let wanted: Vec<u64> = guests
        .iter()
        .zip(&ideals)
        .map(|(guest, &ideal)| {
            let within =
                (guest.limits.min_bytes..=guest.limits.max_bytes).contains(&guest.target_bytes);
            let band = if is_tight { 0 } else { (guest.target_bytes / BAND_DIVISOR).max(QUANTUM) };
            if within && guest.target_bytes.abs_diff(ideal) <= band {
                guest.target_bytes
            } else {
                ideal
            }
        })
        .collect();
    let committed: u64 = guests.iter().map(Seen::committed).fold(0, u64::saturating_add);
    let grants = grants(total_bytes.saturating_sub(committed), guests, &wanted);
    let decisions = guests.iter().zip(&ideals).zip(wanted.iter().zip(grants));
    Ok(decisions
        .map(|((guest, &ideal), (&wanted, grant))| one(guest, ideal, wanted, grant))
        .collect())
}

fn one(guest: &Seen, ideal_bytes: u64, wanted: u64, grant: u64) -> Decision {
    let target = guest.target_bytes;
    let stay = |why| Decision { ask_bytes: None, target_bytes: target, ideal_bytes, why };
    match guest.following {
        Following::Impossible => stay(Why::Impossible),
        _ if wanted < target => {
            // No guest is held to a target that its balloon has not reached.
            let target_bytes = wanted.max(target.min(guest.actual_bytes));
            let late = guest.following == Following::Late;
            let why = if late { Why::Late } else { Why::Shrinks };
            Decision { ask_bytes: Some(wanted), target_bytes, ideal_bytes, why }
        }
        _ if wanted == target => stay(Why::Near),
        _ if grant == 0 => stay(Why::Waits),
        _ => {
            let target_bytes = target + grant;
            let why = if target_bytes < wanted { Why::GrowsInPart } else { Why::Grows };
            Decision { ask_bytes: Some(target_bytes), target_bytes, ideal_bytes, why }
        }
    }
}

/// Returns the ideal target of each guest, whatever it has now.
fn ideals(total_bytes: u64, guests: &[Seen]) -> Result<Vec<u64>, TooSmall> {
    let is_fixed = |guest: &Seen| guest.following != Following::Yes;
    let least =
        |guest: &Seen| if is_fixed(guest) { guest.committed() } else { guest.limits.min_bytes };
    let least_bytes = guests.iter().map(least).fold(0, u64::saturating_add);
    let Some(mut rest) = total_bytes.checked_sub(least_bytes) else {
        // Guests that do not follow are no reason to end: the others go to their minima.
        let minima: u64 = guests.iter().map(|guest| guest.limits.min_bytes).sum();
        return if minima > total_bytes {
            Err(TooSmall { least_bytes: minima })
        } else {
            Ok(guests.iter().map(|guest| guest.limits.min_bytes).collect())
        };
    };
    let mut ideals: Vec<u64> = guests.iter().map(|guest| guest.limits.min_bytes).collect();
    for upper in [Seen::desire, |guest: &Seen| guest.limits.max_bytes] {
        let room =
            |(guest, &ideal): (&Seen, &u64)| if is_fixed(guest) { 0 } else { upper(guest) - ideal };
        let rooms: Vec<u64> = guests.iter().zip(&ideals).map(room).collect();
        let filled = fill(rest, &rooms, guests);
        rest -= filled.iter().sum::<u64>();
        ideals.iter_mut().zip(filled).for_each(|(ideal, more)| *ideal += more);
    }
    for (ideal, guest) in ideals.iter_mut().zip(guests) {
        if is_fixed(guest) {
            *ideal = guest.desire().min(guest.target_bytes).max(guest.limits.min_bytes);
        }
    }
    Ok(ideals)
}

/// Divides `free` bytes among the guests that grow: those that are short come first.
fn grants(free: u64, guests: &[Seen], wanted: &[u64]) -> Vec<u64> {
    let rooms = |short: bool| -> Vec<u64> {
        let room = |(guest, &wanted): (&Seen, &u64)| {
            let counts = guest.is_short == short && guest.following != Following::Impossible;
            if counts { wanted.saturating_sub(guest.target_bytes) } else { 0 }
        };
        guests.iter().zip(wanted).map(room).collect()
    };
    let first = fill(free, &rooms(true), guests);
    let then = fill(free - first.iter().sum::<u64>(), &rooms(false), guests);
    first.iter().zip(then).map(|(first, then)| first + then).collect()
}

/// Fills `rooms` with `bytes` to the same level per share, in whole quanta. Never gives more than
/// `bytes`.
fn fill(bytes: u64, rooms: &[u64], guests: &[Seen]) -> Vec<u64> {
    let poured = |level: u64| {
        rooms.iter().zip(guests).map(move |(&room, guest)| {
            room.min(level.saturating_mul(guest.limits.shares)) / QUANTUM * QUANTUM
        })
    };
    let fits = |level: u64| poured(level).map(u128::from).sum::<u128>() <= u128::from(bytes);
    // The highest level at which it fits: no room takes more than `bytes`.
    let (mut low, mut high) = (0, rooms.iter().copied().max().unwrap_or(0));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    poured(low).collect()
}

#[cfg(test)]
mod tests;
