//! The results as a table of at most 80 columns.

use std::fmt::Write as _;

use zerosweep_client::size::Size;
use zerosweep_lab::result::{Outcome, Run, TimeKind};

/// The runs, by guest, with what the figures mean below.
pub(super) fn table(runs: &[Run]) -> String {
    let mut text = String::new();
    let mut last = None;
    for run in runs {
        let about = (run.guest.as_str(), run.location(), run.max_mem_bytes, run.target_bytes);
        if last != Some(about) {
            heading(&mut text, run, last.is_some());
            last = Some(about);
        }
        row(&mut text, run);
    }
    let models = runs.iter().any(|run| !run.is_real_guest()) || runs.is_empty();
    text.push('\n');
    if models {
        text.push_str(
            "free 2M: superpages of the target that are free at the end, of those possible\n\
             live on: share of the memory in use that lies in whole superpages\n\
             scanned: bytes read by zero checks (the least possible)\n",
        );
    }
    if runs.iter().any(Run::is_real_guest) {
        text.push_str(
            "held: host memory behind the guest, by the kernel; at most, and at the end\n\
             in 2M: huge pages in guest RAM, and the share of the guest's frames in them\n\
             plain: QEMU without zerosweep\n",
        );
    }
    text + times(runs) + "\n"
}

fn times(runs: &[Run]) -> &'static str {
    let kinds = [TimeKind::Measured, TimeKind::Modelled]
        .map(|kind| runs.iter().any(|run| run.time_kind == kind));
    match kinds {
        [true, false] => "times measured",
        [false, true] => "times modelled from counts, not measured",
        _ => "times of the software machine modelled, others measured",
    }
}

fn heading(text: &mut String, run: &Run, more: bool) {
    let gap = if more { "\n" } else { "" };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{gap}{}, {} of {}, {}",
        run.guest,
        Size(run.target_bytes),
        Size(run.max_mem_bytes),
        run.location()
    );
    let heads = if run.is_real_guest() {
        ["boot s", "balloon s", "most held", "at end", "in 2M"]
    } else {
        ["boot s", "balloon s", "free 2M", "live on", "scanned"]
    };
    line(text, "policy", heads);
}

fn line<T: std::fmt::Display>(text: &mut String, name: &str, cells: [T; 5]) {
    let [a, b, c, d, e] = cells;
    let _ = writeln!(text, "  {name:20} {a:>7} {b:>9} {c:>11} {d:>7} {e:>15}");
}

fn row(text: &mut String, run: &Run) {
    if run.outcome != Outcome::Ok {
        let name = format!("{}:", run.policy);
        let _ = writeln!(text, "  {name:20} {}", run.ending());
        return;
    }
    let [boot, balloon] = [run.boot_seconds, run.balloon_seconds].map(|s| format!("{s:.2}"));
    let live = format!("{:.1}%", run.live_on_superpages * 100.0);
    let size = |bytes: u64| Size(bytes).rounded();
    let cells = if run.is_real_guest() {
        [
            boot,
            balloon,
            size(run.peak_total_bytes),
            size(run.end_total_bytes),
            format!("{} ({live})", run.superpages_in_guest),
        ]
    } else {
        [
            boot,
            balloon,
            format!("{}/{}", run.superpages_free(), or_dash(run.limit_superpages_free, |n| n)),
            live,
            format!(
                "{} ({})",
                size(run.engine.bytes_scanned),
                or_dash(run.limit_bytes_scanned, size)
            ),
        ]
    };
    line(text, &run.policy, cells);
}

fn or_dash<T: ToString>(figure: Option<u64>, show: impl Fn(u64) -> T) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| show(figure).to_string())
}
