//! The page: what it is about, then a section a guest.

use std::fmt::Write as _;

use super::bars::{Bar, svg as bars};
use super::{Group, escape, heatmap, lines, size};
use crate::result::{Outcome, Report, Run, TimeKind};

const STYLE: &str = include_str!("style.css");

const READING: &str = "<p>A guest is told that it has more memory than it may hold. Pages get a \
frame when the guest touches them; frames behind zeros are found by scans and taken back, until \
the guest's balloon driver gives the surplus back in 4 KiB pages. <b>Superpages free</b> are those \
of the target that are free and whole at the end, in the cache or with the host: what the next \
guest can have. The dashed line is the most that any policy could have reached: with the pages \
that hold something lying side by side. The least to scan is what the guest writes to beyond the \
target before it gives anything back.</p>";

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

/// How times of a group are called.
fn kind(run: &Run) -> &'static str {
    match run.time_kind {
        TimeKind::Measured => "measured",
        TimeKind::Modelled => "modelled",
    }
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
        first.place(),
        kind(first)
    );
    table(page, group);
    let free = plot(group, |run| run.superpages_free() as f64, |value| format!("{value:.0}"));
    let boot = plot(group, |run| run.boot_seconds, |value| format!("{value:.2} s"));
    let limit = first.limit_superpages_free;
    let _ = write!(
        page,
        "<div class=pair><div><h3>Superpages free at the end (limit: {limit})</h3>{}</div>\
         <div><h3>Boot time, {}</h3>{}</div></div>",
        bars("Superpages free at the end", &free, Some(limit as f64)),
        kind(first),
        bars("Boot time", &boot, None)
    );
    timelines(page, group);
    page.push_str("</section>");
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

const HEADS: [&str; 11] = [
    "policy",
    "boot s",
    "balloon s",
    "2M populates",
    "4K populates",
    "free 2M",
    "limit",
    "live on 2M",
    "scanned",
    "least",
    "flushes",
];

fn table(page: &mut String, group: &Group<'_>) {
    page.push_str("<div class=scroll tabindex=0><table><thead><tr>");
    for (n, head) in HEADS.iter().enumerate() {
        let times = (1..=2).contains(&n);
        let note = if times { format!("<br>{}", kind(group.runs[0])) } else { String::new() };
        let _ = write!(page, "<th scope=col>{head}{note}</th>");
    }
    page.push_str("</tr></thead><tbody>");
    for run in &group.runs {
        let ours = if run.policy == "zerosweep" { " class=ours" } else { "" };
        let _ = write!(page, "<tr{ours}><td>{}", escape(&run.policy));
        if group.runs.iter().any(|other| other.seed != run.seed) {
            let _ = write!(page, " <span class=dim>seed {}</span>", run.seed);
        }
        page.push_str("</td>");
        match run.outcome {
            Outcome::Ok => cells(page, run),
            ended => {
                let _ = write!(
                    page,
                    "<td class=end colspan={}>{}: no frame was found for the guest</td>",
                    HEADS.len() - 1,
                    outcome(ended)
                );
            }
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>");
}

fn cells(page: &mut String, run: &Run) {
    let cells = [
        format!("{:.2}", run.boot_seconds),
        format!("{:.2}", run.balloon_seconds),
        run.populates_2m.to_string(),
        run.populates_4k.to_string(),
        run.superpages_free().to_string(),
        run.limit_superpages_free.to_string(),
        format!("{:.1} %", run.live_on_superpages * 100.0),
        size(run.bytes_scanned),
        size(run.limit_bytes_scanned),
        run.unmap_flushes.to_string(),
    ];
    for cell in cells {
        let _ = write!(page, "<td>{cell}</td>");
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
         (from the dotted line). Above: quantities, from 0 to all that the guest was told of. Below: \
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

fn key(items: &[(&str, &str)]) -> String {
    let mut text = String::from("<ul class=key>");
    for (colour, what) in items {
        let _ = write!(text, "<li><i style=\"background:var(--{colour})\"></i>{what}</li>");
    }
    text + "</ul>"
}
