//! The table of one guest: a row a run.

use std::fmt::Write as _;

use super::{Group, escape, kind, size};
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

/// Appends the table.
pub(super) fn table(page: &mut String, group: &Group<'_>) {
    let columns: &[Column] = if group.runs[0].is_real_guest() { &REAL } else { &MODEL };
    page.push_str("<div class=scroll tabindex=0><table><thead><tr><th scope=col>policy</th>");
    for Column { head, is_time, .. } in columns {
        let note = if *is_time { format!("<br>{}", kind(group.runs[0])) } else { String::new() };
        // Writing to a string cannot fail.
        let _ = write!(page, "<th scope=col>{head}{note}</th>");
    }
    page.push_str("</tr></thead><tbody>");
    for run in &group.runs {
        row(page, group, run, columns);
    }
    page.push_str("</tbody></table></div>");
}

fn row(page: &mut String, group: &Group<'_>, run: &Run, columns: &[Column]) {
    let ours = if run.policy == "zerosweep" { " class=ours" } else { "" };
    let _ = write!(page, "<tr{ours}><td>{}", escape(&run.policy));
    if group.runs.iter().any(|other| other.seed != run.seed) {
        let _ = write!(page, " <span class=dim>seed {}</span>", run.seed);
    }
    page.push_str("</td>");
    if run.outcome == Outcome::Ok {
        for column in columns {
            let _ = write!(page, "<td>{}</td>", (column.cell)(run));
        }
    } else {
        let _ = write!(page, "<td class=end colspan={}>{}</td>", columns.len(), run.ending());
    }
    page.push_str("</tr>");
}
