//! `zerosweep trace read FILE`: what was done to each domain, counted.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;
use zerosweep_client::error::Failure;
use zerosweep_client::output::{self, eprint_line};
use zerosweep_client::size::pages;
use zerosweep_lab::xentrace::{ByOrder, DomainSummary, Guess, Layout, Summary};

use super::{NOTHING, Trace};
use crate::cli::TraceReadArguments;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    file: String,
    layout: Layout,
    /// Why it is taken for this layout.
    layout_reason: &'a str,
    /// Where it could not be read on, if so.
    broken: Option<String>,
    #[serde(flatten)]
    summary: &'a Summary,
}

/// Counts and prints.
pub(super) fn execute(arguments: &TraceReadArguments) -> Result<ExitCode, Failure> {
    let file = &arguments.trace.file;
    let trace = Trace::open(&arguments.trace)?;
    let guess = trace.layout()?;
    let (summary, broken) = trace.summary(guess.layout)?;
    let broken = broken.map(|broken| broken.to_string());
    if arguments.json {
        output::json(&Document {
            schema: 1,
            file: file.display().to_string(),
            layout: guess.layout,
            layout_reason: &guess.reason,
            broken: broken.clone(),
            summary: &summary,
        })?;
    } else {
        output::text(&render(&summary, &guess))?;
    }
    let Some(broken) = broken else { return Ok(ExitCode::SUCCESS) };
    eprint_line(&format!(
        "error: {} cannot be read on: {broken}; the part before is shown",
        trace.name()
    ));
    Ok(ExitCode::from(1))
}

fn render(summary: &Summary, guess: &Guess) -> String {
    let mut text = String::new();
    let layout = match guess.layout {
        Layout::Words => "words (Xen 4.18 and newer)",
        Layout::Halves => "halves (before Xen 4.18)",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} records of {} CPUs, {} of other kinds, {} lost\nlayout {layout}: {}",
        summary.records, summary.cpus, summary.other_records, summary.lost_records, guess.reason,
    );
    for (number, domain) in &summary.domains {
        let _ = write!(text, "\ndomain {number}\n{}", table(domain));
    }
    if summary.domains.is_empty() {
        let _ = writeln!(text, "{NOTHING}");
    }
    text
}

fn table(domain: &DomainSummary) -> String {
    let mut text = String::new();
    let mut row = |label: &str, value: String| {
        let _ = writeln!(text, "  {label:12} {value}");
    };
    let counted = |counts: &ByOrder| {
        let orders: Vec<_> =
            counts.orders().map(|(order, count)| format!("{count} of order {order}")).collect();
        if orders.is_empty() {
            "0".to_owned()
        } else {
            format!("{} ({})", counts.all(), orders.join(", "))
        }
    };
    row("populates", counted(&domain.populates));
    row("reclaims", counted(&domain.reclaims));
    row("splinters", domain.splinters.to_string());
    row("decreases", counted(&domain.decreases));
    let looks = domain.looks;
    if looks.records > 0 {
        row(
            "looks",
            format!(
                "{} records: {} pages zero, {} not",
                looks.records, looks.pages_zero, looks.pages_live
            ),
        );
    }
    row(
        "at the end",
        match domain.pages_at_the_end() {
            Some(tally) => format!(
                "{} entries ({}), {} pages of ram ({}), {} given back",
                tally.pod,
                pages(tally.pod),
                tally.ram,
                pages(tally.ram),
                tally.invalid,
            ),
            None => "unknown: more than 1 TiB was touched page by page".to_owned(),
        },
    );
    row(
        "cache",
        format!(
            "{:+} pages by populates and reclaims; what was stolen is not recorded",
            domain.cache_change
        ),
    );
    text
}
