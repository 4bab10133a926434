//! `zerosweep status NAME`: one guest's figures.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_client::size::{Size, pages, signed_pages};
use zerosweep_wire::{Operation, State, Status};

use super::ps::by_the_word_of;
use crate::cli::GuestArguments;

/// Prints the figures.
pub(super) fn execute(arguments: &GuestArguments) -> Result<ExitCode, Failure> {
    let mut client = super::connect(&arguments.name)?;
    let status = super::ask(&mut client, &arguments.name, Operation::Status)?;
    if arguments.json {
        output::json(&status)?
    } else {
        output::text(&render(&status, client.other_user()))?
    }
    Ok(ExitCode::SUCCESS)
}

/// The state in a word or two.
pub(super) fn state_word(state: State) -> &'static str {
    match state {
        State::WaitingForRam => "waiting",
        State::Managing => "managing",
        State::CapLifted => "cap lifted",
        State::Failed => "failed",
    }
}

/// A table of at most 80 columns: what it is, what it holds, what has been done.
fn render(status: &Status, other_user: Option<u32>) -> String {
    let mut table = Table::default();
    identity(&mut table, status);
    if let Some(user) = other_user {
        table.row("figures", by_the_word_of(user));
    }
    memory(&mut table, status);
    work(&mut table, status);
    table.text
}

#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn row(&mut self, label: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{label:12} {value}");
    }
}

fn identity(table: &mut Table, status: &Status) {
    table.row("guest", format_args!("{} (pid {})", status.name, status.pid));
    table.row("state", state_word(status.state));
    if let Some(reason) = &status.reason {
        table.row("reason", reason);
    }
    let (exhaustion, return_mode) = (status.on_exhaustion.name(), status.return_mode.name());
    let policy = &status.policy;
    table.row("policy", format_args!("{policy}; on exhaustion {exhaustion}; return {return_mode}"));
}

fn memory(table: &mut Table, status: &Status) {
    let figures = &status.pages;
    let (target, max) = (Size(status.target_bytes).rounded(), Size(status.max_mem_bytes).rounded());
    table.row("memory", format_args!("target {target} of {max}"));
    table.row(
        "held",
        format_args!(
            "{} = {} populated + {} cache + {} retained",
            pages(figures.total),
            pages(figures.populated),
            pages(figures.cache),
            pages(figures.retained),
        ),
    );
    table.row(
        "promised",
        format_args!(
            "{} without a frame, debt {}",
            pages(figures.entries),
            signed_pages(figures.debt),
        ),
    );
    table.row(
        "forecast",
        format_args!(
            "can touch {}, {} more by sweeping; {} short",
            pages(figures.can_touch),
            pages(figures.likely),
            pages(figures.short),
        ),
    );
    let (out, owed) = (pages(figures.ballooned_out), signed_pages(figures.owed));
    table.row("balloon", format_args!("{out} given back, {owed} owed"));
    let superpages = &status.superpages;
    let by_kernel = match superpages.in_guest_by_kernel {
        Some(count) => format!(" ({count} by the kernel)"),
        None => String::new(),
    };
    table.row(
        "superpages",
        format_args!(
            "{} in the guest{by_kernel}, {} in the cache, {} broken",
            superpages.in_guest, superpages.in_cache, superpages.broken,
        ),
    );
    table.row(
        "RSS",
        format_args!("{} with the VMM's own", Size(status.host.rss_anon_bytes).rounded()),
    );
    if status.stalled_threads > 0 {
        table.row("stalled", format_args!("{} threads wait for a frame", status.stalled_threads));
    }
    if status.borrowed_pages > 0 {
        table.row("borrowed", format_args!("{} beyond the target", pages(status.borrowed_pages)));
    }
}

fn work(table: &mut Table, status: &Status) {
    let (faults, done) = (status.counters.faults, &status.counters.engine);
    let bytes = |count| Size(count).rounded();
    table.row(
        "faults",
        format_args!("{faults}: {} of 2M, {} of 4K", done.populates_2m, done.populates_4k),
    );
    let latency = &status.fault_latency;
    let time = |ns| format!("{:.1?}", Duration::from_nanos(ns));
    table.row(
        "fault time",
        format_args!(
            "median {}, 99 % {}, longest {}",
            time(latency.p50_ns),
            time(latency.p99_ns),
            time(latency.max_ns),
        ),
    );
    table.row(
        "zero checks",
        format_args!(
            "2M: {} of {} zero; 4K: {} of {} zero",
            done.zero_checks_2m_hit,
            done.zero_checks_2m,
            done.zero_checks_4k_hit,
            done.zero_checks_4k,
        ),
    );
    table.row(
        "bytes",
        format_args!(
            "{} scanned, {} cleared, {} copied",
            bytes(done.bytes_scanned),
            bytes(done.bytes_cleared),
            bytes(done.bytes_copied),
        ),
    );
    let (whole, singles) = (done.superpages_reclaimed, done.singles_reclaimed);
    table.row("reclaimed", format_args!("{whole} superpages, {singles} singles"));
    let (whole, singles) = (done.superpages_returned, done.pages_returned_4k);
    table.row("returned", format_args!("{whole} superpages, {singles} singles"));
    table.row(
        "trouble",
        format_args!(
            "{} emergency sweeps, {} exhaustions, {} busy moves, peak {}",
            done.emergency_sweeps,
            done.exhaustions,
            done.busy,
            pages(done.peak_total),
        ),
    );
    if let Some(events) = &status.events {
        let (records, length, lost) = (events.records, bytes(events.bytes), events.lost);
        table.row("events", format_args!("{records} records, {length}, {lost} lost"));
        if let Some(error) = &events.error {
            table.row("events ended", error);
        }
    }
}

#[cfg(test)]
mod tests {
    use zerosweep_wire::Recorded;

    use super::*;
    use zerosweep_client::test_support::sample_status;

    #[test]
    fn the_table_fits_on_80_columns() {
        let mut status = sample_status("vm");
        status.stalled_threads = 2;
        status.borrowed_pages = 256;
        status.superpages.in_guest_by_kernel = Some(288);
        status.events = Some(Recorded {
            file: "/tmp/a".into(),
            records: 1_234_567,
            bytes: 45 << 20,
            lost: 12,
            error: Some("No space left on device (os error 28)".into()),
        });
        let text = render(&status, None);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for part in [
            "guest        vm (pid 4194303)",
            "memory       target 768M of 2G",
            "held         765.6M = 585.9M populated + 156.3M cache + 23.4M retained",
            "superpages   290 in the guest (288 by the kernel), 78 in the cache, 12 broken",
            "borrowed     1M beyond the target",
            "events       1234567 records, 45M, 12 lost",
            "events ended No space left on device (os error 28)",
            "fault time   median 52.0µs, 99 % 92.0µs, longest 4.3ms",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn what_is_not_there_has_no_row() {
        let text = render(&sample_status("vm"), None);
        assert!(!text.contains("stalled") && !text.contains("reason"), "{text}");
    }
}
