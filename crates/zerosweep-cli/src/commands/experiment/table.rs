//! The results as a table of at most 80 columns.

use std::fmt::Write as _;

use zerosweep_lab::result::{Outcome, Run, TimeKind};

use crate::size::Size;

/// The runs, by guest, with what the figures mean below.
pub(super) fn table(runs: &[Run]) -> String {
    let mut text = String::new();
    let mut last = None;
    for run in runs {
        let about = (run.guest.as_str(), run.machine.as_str(), run.max_mem_bytes, run.target_bytes);
        if last != Some(about) {
            heading(&mut text, run, last.is_some());
            last = Some(about);
        }
        row(&mut text, run);
    }
    let kinds = [TimeKind::Measured, TimeKind::Modelled]
        .map(|kind| runs.iter().any(|run| run.time_kind == kind));
    let times = match kinds {
        [true, false] => "times measured",
        [false, true] => "times modelled from counts, not measured",
        _ => "times of the software machine modelled, others measured",
    };
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\nfree 2M: superpages of the target that are free at the end, of the most possible\n\
         live on: share of the memory in use that lies in whole superpages\n\
         scanned: bytes read by zero checks (the least possible)\n{times}\n"
    );
    text
}

fn heading(text: &mut String, run: &Run, more: bool) {
    let gap = if more { "\n" } else { "" };
    let _ = writeln!(
        text,
        "{gap}{}, {} of {}, {}",
        run.guest,
        Size(run.target_bytes),
        Size(run.max_mem_bytes),
        run.place()
    );
    let _ = writeln!(
        text,
        "  {:20} {:>7} {:>9} {:>11} {:>7} {:>15}",
        "policy", "boot s", "balloon s", "free 2M", "live on", "scanned"
    );
}

fn row(text: &mut String, run: &Run) {
    let name = match run.outcome {
        Outcome::Ok => run.policy.clone(),
        _ => format!("{}:", run.policy),
    };
    let _ = write!(text, "  {name:20} ");
    let _ = match run.outcome {
        Outcome::Ok => writeln!(
            text,
            "{:>7.2} {:>9.2} {:>11} {:>6.1}% {:>15}",
            run.boot_seconds,
            run.balloon_seconds,
            format!("{}/{}", run.superpages_free(), run.limit_superpages_free),
            run.live_on_superpages * 100.0,
            format!(
                "{} ({})",
                Size(run.bytes_scanned).rounded(),
                Size(run.limit_bytes_scanned).rounded()
            )
        ),
        Outcome::Exhausted => writeln!(text, "exhausted: no frame was found for the guest"),
        Outcome::Stalled => writeln!(text, "stalled: no frame was found for the guest"),
        Outcome::Killed => writeln!(text, "the guest was ended"),
    };
}
