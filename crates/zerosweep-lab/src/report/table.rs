//! The table of one guest: a row a run.

use maud::{Markup, html};

use super::{Group, kind, size};
use crate::result::{Outcome, Run};

/// What one column shows.
struct Column {
    head: &'static str,
    /// Whether it says how times came about.
    is_time: bool,
    cell: fn(&Run) -> String,
}

const fn column(head: &'static str, cell: fn(&Run) -> String) -> Column {
    Column { head, is_time: false, cell }
}

const BOOT: Column =
    Column { head: "boot s", is_time: true, cell: |run| format!("{:.2}", run.boot_seconds) };
const BALLOON: Column =
    Column { head: "balloon s", is_time: true, cell: |run| format!("{:.2}", run.balloon_seconds) };
const LIVE: Column = column("live on 2M", |run| format!("{:.1} %", run.live_on_superpages * 100.0));

/// The columns for guest models.
const MODEL: [Column; 10] = [
    BOOT,
    BALLOON,
    column("2M populates", |run| run.engine.populates_2m.to_string()),
    column("4K populates", |run| run.engine.populates_4k.to_string()),
    column("free 2M", |run| run.superpages_free().to_string()),
    column("limit", |run| or_dash(run.limit_superpages_free, |limit| limit.to_string())),
    LIVE,
    column("scanned", |run| size(run.engine.bytes_scanned)),
    column("least", |run| or_dash(run.limit_bytes_scanned, size)),
    column("flushes", |run| run.unmap_flushes.to_string()),
];

/// The columns for real guests.
const REAL: [Column; 10] = [
    BOOT,
    BALLOON,
    column("most held", |run| size(run.peak_total_bytes)),
    column("held at the end", |run| size(run.end_total_bytes)),
    column("2M in guest", |run| run.superpages_in_guest.to_string()),
    LIVE,
    column("2M populates", |run| engine(run, |run| run.engine.populates_2m.to_string())),
    column("4K populates", |run| engine(run, |run| run.engine.populates_4k.to_string())),
    column("2M reclaimed", |run| engine(run, |run| run.engine.superpages_reclaimed.to_string())),
    column("scanned", |run| engine(run, |run| size(run.engine.bytes_scanned))),
];

fn or_dash(figure: Option<u64>, show: fn(u64) -> String) -> String {
    figure.map_or_else(|| "–".to_owned(), show)
}

/// A figure of the engine; a dash if there is no engine.
fn engine(run: &Run, show: fn(&Run) -> String) -> String {
    if run.is_plain() { "–".to_owned() } else { show(run) }
}

/// The table.
pub(super) fn table(group: &Group<'_>) -> Markup {
    let columns: &[Column] = if group.runs[0].is_real_guest() { &REAL } else { &MODEL };
    html! {
        div.scroll tabindex="0" {
            table {
                thead {
                    tr {
                        th scope="col" { "policy" }
                        @for Column { head, is_time, .. } in columns {
                            th scope="col" { (head) @if *is_time { br; (kind(group.runs[0])) } }
                        }
                    }
                }
                tbody { @for run in &group.runs { (row(group, run, columns)) } }
            }
        }
    }
}

fn row(group: &Group<'_>, run: &Run, columns: &[Column]) -> Markup {
    let seeds_differ = group.runs.iter().any(|other| other.seed != run.seed);
    html! {
        tr.ours[run.policy == "zerosweep"] {
            td {
                (run.policy)
                @if seeds_differ { " " span.dim { "seed " (run.seed) } }
            }
            @if run.outcome == Outcome::Ok {
                @for column in columns { td { ((column.cell)(run)) } }
            } @else {
                td.end colspan=(columns.len()) { (run.ending()) }
            }
        }
    }
}
