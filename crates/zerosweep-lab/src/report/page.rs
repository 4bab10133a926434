//! The page: what it is about, then a section a guest.

use std::fmt::Write as _;

use super::bars::{Bar, svg as bars};
use super::table::table;
use super::{Group, escape, heatmap, kind, lines, size};
use crate::result::{Outcome, Report, Run, TimeKind};

pub(super) const STYLE: &str = include_str!("style.css");

const READING: &str = "<p>A guest is told that it has more memory than it may hold. A page gets a \
frame when the guest touches it. Scans find pages that are zero, and their frames are taken back, \
until the guest's balloon driver gives the surplus back in 4 KiB pages.</p>";

const MODELS: &str = "<p><b>Superpages free</b> are those of the target that are free and whole at \
the end, in the cache or with the host. The next guest can have them. The dashed line is the most \
that any policy could have reached, if the live pages lay side by side. The least to scan is the \
memory that the guest writes to beyond the target before it gives anything back.</p>";

const REAL_GUESTS: &str = "<p><b>Real guests.</b> Those whose names begin with qemu- are Linux \
under QEMU; <b>plain</b> is QEMU without zerosweep. Memory held is what the host's kernel charges \
for the guest, without QEMU's own.</p>";

/// The report as one HTML document.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <meta name=color-scheme content=\"light dark\">\
         <title>zerosweep: experiments</title><style>{STYLE}</style></head><body>\
         <h1>Populate on demand: every policy on every guest</h1>{READING}"
    );
    page.push_str(&host(report));
    if report.runs.iter().any(|run| !run.is_real_guest()) {
        page.push_str(MODELS);
    }
    if report.runs.iter().any(Run::is_real_guest) {
        page.push_str(REAL_GUESTS);
    }
    for group in Group::of(&report.runs) {
        section(&mut page, &group);
    }
    if report.runs.is_empty() {
        page.push_str("<p class=note>There are no runs.</p>");
    }
    page + "</body></html>\n"
}

fn host(report: &Report) -> String {
    let host = &report.host;
    let mut text = format!(
        "<p class=dim>zerosweep {} on Linux {}, {}, {} processors, {}; {} runs.</p>",
        escape(&host.zerosweep),
        escape(&host.kernel),
        escape(if host.cpu.is_empty() { &host.architecture } else { &host.cpu }),
        host.cpus,
        size(host.memory_bytes),
        report.runs.len()
    );
    if report.runs.iter().any(|run| run.time_kind == TimeKind::Modelled) {
        text.push_str(
            "<p class=note><b>Modelled times.</b> Runs on the software machine count what is done; \
             their times are what that would cost by a cost model. They were not measured.</p>",
        );
    }
    text
}

fn section(page: &mut String, group: &Group<'_>) {
    let first = group.runs[0];
    let virtual_cpus = if first.vcpus == 1 { "virtual CPU" } else { "virtual CPUs" };
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<section><h2>{}</h2><p class=dim>{} of {}, {} {virtual_cpus}, {}; times are \
         {}</p>",
        escape(&first.guest),
        size(first.target_bytes),
        size(first.max_mem_bytes),
        first.vcpus,
        first.location(),
        kind(first)
    );
    table(page, group);
    if first.is_real_guest() {
        plots_of_a_real_guest(page, group);
    } else {
        plots_of_a_model(page, group);
    }
    timelines(page, group);
    page.push_str("</section>");
}

fn plots_of_a_model(page: &mut String, group: &Group<'_>) {
    let first = group.runs[0];
    let free = plot(group, |run| run.superpages_free() as f64, |value| format!("{value:.0}"));
    let limit = first.limit_superpages_free;
    let note = limit.map_or_else(String::new, |limit| format!(" (limit: {limit})"));
    let title = "Superpages free at the end";
    pair(
        page,
        (&format!("{title}{note}"), bars(title, &free, limit.map(|limit| limit as f64))),
        boot(group),
    );
}

fn plots_of_a_real_guest(page: &mut String, group: &Group<'_>) {
    let target = group.runs[0].target_bytes;
    let held = |title: &'static str, read: fn(&Run) -> f64| {
        let plot = plot(group, read, |value| size(value as u64));
        (title, bars(title, &plot, Some(target as f64)))
    };
    let live = plot(group, |run| run.live_on_superpages * 100.0, |value| format!("{value:.1} %"));
    let title = "Guest memory in superpages at the end";
    pair(
        page,
        held("Most memory held (dashed: target)", |run| run.peak_total_bytes as f64),
        held("Memory held at the end (dashed: target)", |run| run.end_total_bytes as f64),
    );
    pair(page, (title, bars(title, &live, None)), boot(group));
}

/// A plot of boot times, with its title.
fn boot(group: &Group<'_>) -> (&'static str, String) {
    let boot = plot(group, |run| run.boot_seconds, |value| format!("{value:.2} s"));
    let title = match group.runs[0].time_kind {
        TimeKind::Measured => "Boot time, measured",
        TimeKind::Modelled => "Boot time, modelled",
    };
    (title, bars(title, &boot, None))
}

/// Two plots beside each other where there is room, each with its title.
fn pair(page: &mut String, left: (&str, String), right: (&str, String)) {
    let _ = write!(
        page,
        "<div class=pair><div><h3>{}</h3>{}</div><div><h3>{}</h3>{}</div></div>",
        left.0, left.1, right.0, right.1
    );
}

fn plot<'a>(group: &Group<'a>, read: fn(&Run) -> f64, show: fn(f64) -> String) -> Vec<Bar<'a>> {
    let bar = |(label, runs): (&'a str, Vec<&Run>)| {
        let ended = |run: &&&Run| run.outcome == Outcome::Ok;
        let mut values: Vec<f64> = runs.iter().filter(ended).map(|run| read(run)).collect();
        values.sort_by(f64::total_cmp);
        let median = values.get(values.len() / 2).copied();
        let range = (values.len() > 1).then(|| (values[0], values[values.len() - 1]));
        let text = median.map_or_else(|| outcome(runs[0].outcome).to_owned(), show);
        Bar { label, value: median, text, range }
    };
    group.policies().into_iter().map(bar).collect()
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Exhausted => "exhausted",
        Outcome::Stalled => "stalled",
        Outcome::Killed => "killed",
    }
}

fn timelines(page: &mut String, group: &Group<'_>) {
    // Of several runs under one policy the first is shown.
    let firsts = group.policies().into_iter().filter_map(|(_, runs)| {
        let run = runs[0];
        run.timeline.as_ref().filter(|samples| samples.len() > 1).map(|samples| (run, samples))
    });
    let firsts: Vec<_> = firsts.collect();
    if firsts.is_empty() {
        return;
    }
    page.push_str(
        "<h3>Over the run</h3><p class=dim>Left to right: the guest's work, boot then ballooning \
         (from the dotted line). Above: quantities, from 0 to the guest's whole memory. Below: \
         guest memory from its first page (top) to its last; a cell shows the worst of its \
         superpages.</p>",
    );
    page.push_str(&key(&[
        ("total", "total held"),
        ("populated", "populated"),
        ("cache", "cache"),
        ("entries", "entries (promised, no frame)"),
    ]));
    page.push_str(&key(&[
        ("whole", "whole"),
        ("retained", "whole, with pages that were given back"),
        ("broken", "broken"),
        ("pod", "populate on demand"),
        ("out", "ballooned out"),
    ]));
    page.push_str("<div class=many>");
    for (run, samples) in firsts {
        let ended = match run.outcome {
            Outcome::Ok => String::new(),
            ended => format!(", {}", outcome(ended)),
        };
        let _ = write!(
            page,
            "<figure><figcaption><b>{}</b>{ended}</figcaption>{}{}</figure>",
            escape(&run.policy),
            lines::svg(run, samples),
            heatmap::svg(run, samples)
        );
    }
    page.push_str("</div>");
}

pub(super) fn key(items: &[(&str, &str)]) -> String {
    let mut text = String::from("<ul class=key>");
    for (colour, what) in items {
        let _ = write!(text, "<li><i style=\"background:var(--{colour})\"></i>{what}</li>");
    }
    text + "</ul>"
}
