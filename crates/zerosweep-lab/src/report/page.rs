//! The page: what it is about, then a section a guest.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::bars::{Bar, svg as bars};
use super::table::table;
use super::{Group, heatmap, kind, lines, size};
use crate::result::{Outcome, Report, Run, TimeKind};

const STYLE: &str = include_str!("style.css");

const READING: &str = "A guest is told that it has more memory than it may hold. A page gets a \
frame when the guest touches it. Scans find pages that are zero, and their frames are taken back, \
until the guest's balloon driver gives the surplus back in 4 KiB pages.";

const MODELS: (&str, &str) = (
    "Superpages free",
    " are those of the target that are free and whole at the end, in the cache or with the host. The \
     next guest can have them. The dashed line is the most that any policy could have reached, if \
     the live pages lay side by side. The least to scan is the memory that the guest writes to \
     beyond the target before it gives anything back.",
);

const MODELLED_TIMES: (&str, &str) = (
    "Modelled times.",
    " Runs on the software machine count what is done; their times are what that would cost by a \
     cost model. They were not measured.",
);

const OVER_THE_RUN: &str = "Left to right: the guest's work, boot then ballooning (from the dotted \
    line). Above: quantities, from 0 to the guest's whole memory. Below: guest memory from its \
    first page (top) to its last; a cell shows the worst of its superpages.";

/// A whole document. It needs nothing from the network.
pub(super) fn document(title: &str, heading: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { h1 { (heading) } (body) }
        }
    };
    page.into_string() + "\n"
}

/// The report as one HTML document.
#[must_use]
pub fn html(report: &Report) -> String {
    let body = html! {
        p { (READING) }
        (host(report))
        @if report.runs.iter().any(|run| !run.is_real_guest()) { p { b { (MODELS.0) } (MODELS.1) } }
        @if report.runs.iter().any(Run::is_real_guest) {
            p {
                b { "Real guests." }
                " Those whose names begin with qemu- are Linux under QEMU; " b { "plain" }
                " is QEMU without zerosweep. Memory held is what the host's kernel charges for the \
                 guest, without QEMU's own."
            }
        }
        @for group in Group::of(&report.runs) { (section(&group)) }
        @if report.runs.is_empty() { p.note { "There are no runs." } }
    };
    let heading = "Populate on demand: every policy on every guest";
    document("zerosweep: experiments", heading, &body)
}

fn host(report: &Report) -> Markup {
    let host = &report.host;
    let is_modelled = |run: &Run| run.time_kind == TimeKind::Modelled;
    html! {
        p.dim {
            "zerosweep " (host.zerosweep) " on Linux " (host.kernel) ", "
            (if host.cpu.is_empty() { &host.architecture } else { &host.cpu }) ", "
            (host.cpus) " processors, " (size(host.memory_bytes)) "; "
            (report.runs.len()) " runs."
        }
        @if report.runs.iter().any(is_modelled) {
            p.note { b { (MODELLED_TIMES.0) } (MODELLED_TIMES.1) }
        }
    }
}

fn section(group: &Group<'_>) -> Markup {
    let first = group.runs[0];
    let virtual_cpus = if first.vcpus == 1 { "virtual CPU" } else { "virtual CPUs" };
    html! {
        section {
            h2 { (first.guest) }
            p.dim {
                (size(first.target_bytes)) " of " (size(first.max_mem_bytes)) ", "
                (first.vcpus) " " (virtual_cpus) ", " (first.location()) "; times are "
                (kind(first))
            }
            (table(group))
            @if first.is_real_guest() { (plots_of_a_real_guest(group)) }
            @else { (plots_of_a_model(group)) }
            (timelines(group))
        }
    }
}

fn plots_of_a_model(group: &Group<'_>) -> Markup {
    let first = group.runs[0];
    let free = plot(group, |run| run.superpages_free() as f64, |value| format!("{value:.0}"));
    let limit = first.limit_superpages_free;
    let note = limit.map_or_else(String::new, |limit| format!(" (limit: {limit})"));
    let title = "Superpages free at the end";
    let free = bars(title, &free, limit.map(|limit| limit as f64));
    pair((&format!("{title}{note}"), free), boot(group))
}

fn plots_of_a_real_guest(group: &Group<'_>) -> Markup {
    let target = group.runs[0].target_bytes;
    let held = |title: &'static str, read: fn(&Run) -> f64| {
        let plot = plot(group, read, |value| size(value as u64));
        (title, bars(title, &plot, Some(target as f64)))
    };
    let live = plot(group, |run| run.live_on_superpages * 100.0, |value| format!("{value:.1} %"));
    let title = "Guest memory in superpages at the end";
    let most = held("Most memory held (dashed: target)", |run| run.peak_total_bytes as f64);
    let end = held("Memory held at the end (dashed: target)", |run| run.end_total_bytes as f64);
    html! {
        (pair(most, end))
        (pair((title, bars(title, &live, None)), boot(group)))
    }
}

/// A plot of boot times, with its title.
fn boot(group: &Group<'_>) -> (&'static str, Markup) {
    let boot = plot(group, |run| run.boot_seconds, |value| format!("{value:.2} s"));
    let title = match group.runs[0].time_kind {
        TimeKind::Measured => "Boot time, measured",
        TimeKind::Modelled => "Boot time, modelled",
    };
    (title, bars(title, &boot, None))
}

/// Two plots beside each other where there is room, each with its title.
fn pair(left: (&str, Markup), right: (&str, Markup)) -> Markup {
    html! {
        div.pair {
            @for (title, plot) in [left, right] { div { h3 { (title) } (plot) } }
        }
    }
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

fn timelines(group: &Group<'_>) -> Markup {
    // Of several runs under one policy the first is shown.
    let firsts = group.policies().into_iter().filter_map(|(_, runs)| {
        let run = runs[0];
        run.timeline.as_ref().filter(|samples| samples.len() > 1).map(|samples| (run, samples))
    });
    let firsts: Vec<_> = firsts.collect();
    html! {
        @if !firsts.is_empty() {
            h3 { "Over the run" }
            p.dim { (OVER_THE_RUN) }
            (key(&[
                ("total", "total held"),
                ("populated", "populated"),
                ("cache", "cache"),
                ("entries", "entries (promised, no frame)"),
            ]))
            (key(&[
                ("whole", "whole"),
                ("retained", "whole, with pages that were given back"),
                ("broken", "broken"),
                ("pod", "populate on demand"),
                ("out", "ballooned out"),
            ]))
            div.many {
                @for (run, samples) in firsts {
                    figure {
                        figcaption {
                            b { (run.policy) }
                            @if run.outcome != Outcome::Ok { ", " (outcome(run.outcome)) }
                        }
                        (lines::svg(run, samples))
                        (heatmap::svg(run, samples))
                    }
                }
            }
        }
    }
}

/// What the colours of a plot mean.
pub(super) fn key(items: &[(&str, &str)]) -> Markup {
    html! {
        ul.key {
            @for (colour, what) in items {
                li { i style={ "background:var(--" (colour) ")" } {} (what) }
            }
        }
    }
}
