//! `/metrics`: the figures of all guests for Prometheus and other scrapers (`exposition`: in which
//! format).
//!
//! Each scrape asks all agents at the same time. A guest whose agent does not answer has
//! `zerosweep_up` 0 and nothing else.

use std::fmt;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use zerosweep_client::poll::PollError;
use zerosweep_client::size::PAGE_BYTES;
use zerosweep_wire::{Counter, Counters, State as GuestState, Status};

use crate::Server;
use crate::api::{Refusal, poll_all};
use crate::exposition::Exposition;

/// Prefix of every name.
const PREFIX: &str = "zerosweep";

/// A family of samples; each has the label `guest`.
struct Metric {
    /// Without prefix, unit and `_total`.
    name: &'static str,
    help: &'static str,
    samples: Samples,
}

/// The values of a label, and where each one's figure is.
type Labelled = &'static [(&'static str, fn(&Status) -> u64)];

/// The values of a label, and the name of each one's counter in [`Counters`].
type LabelledCounters = &'static [(&'static str, &'static str)];

/// A further label and where the figure is, for each sample of a guest.
enum Samples {
    Bytes(fn(&Status) -> u64),
    SignedBytes(fn(&Status) -> i64),
    Number(fn(&Status) -> u64),
    Numbers(&'static str, Labelled),
    Seconds(&'static str, Labelled),
    /// The highest number of pages, as bytes: no counter for Prometheus.
    PeakPages(&'static str),
    Count(&'static str),
    Counts(&'static str, LabelledCounters),
    CountedBytes(&'static str, LabelledCounters),
}

impl Samples {
    fn kind(&self) -> MetricType {
        match self {
            Self::Count(_) | Self::Counts(..) | Self::CountedBytes(..) => MetricType::Counter,
            _ => MetricType::Gauge,
        }
    }

    fn unit(&self) -> Option<Unit> {
        match self {
            Self::Bytes(_) | Self::SignedBytes(_) | Self::PeakPages(_) | Self::CountedBytes(..) => {
                Some(Unit::Bytes)
            }
            Self::Seconds(..) => Some(Unit::Seconds),
            _ => None,
        }
    }

    /// Whether a counter is among the samples.
    fn has(&self, counter: &str) -> bool {
        match self {
            Self::PeakPages(name) | Self::Count(name) => *name == counter,
            Self::Counts(_, all) | Self::CountedBytes(_, all) => {
                all.iter().any(|(_, name)| *name == counter)
            }
            _ => false,
        }
    }
}

const fn metric(name: &'static str, help: &'static str, samples: Samples) -> Metric {
    Metric { name, help, samples }
}

/// What a guest has. A counter that is not here has a family of its own, by its own name.
const METRICS: &[Metric] = &[
    metric(
        "state",
        "1 for what the agent is doing now",
        Samples::Numbers(
            "state",
            &[
                ("waiting_for_ram", |s| u64::from(s.state == GuestState::WaitingForRam)),
                ("managing", |s| u64::from(s.state == GuestState::Managing)),
                ("cap_lifted", |s| u64::from(s.state == GuestState::CapLifted)),
                ("failed", |s| u64::from(s.state == GuestState::Failed)),
            ],
        ),
    ),
    metric("max_memory", "What the guest is told that it has", Samples::Bytes(|s| s.max_mem_bytes)),
    metric("target", "What the guest may hold", Samples::Bytes(|s| s.target_bytes)),
    metric(
        "held",
        "What the guest holds: populated, cache and retained",
        Samples::Bytes(|s| bytes(s.pages.total)),
    ),
    metric(
        "populated",
        "Guest memory with a frame behind it",
        Samples::Bytes(|s| bytes(s.pages.populated)),
    ),
    metric(
        "cache",
        "Slots of the populate-on-demand cache",
        Samples::Bytes(|s| bytes(s.pages.cache)),
    ),
    metric(
        "retained",
        "Given back, but the frame stays in its superpage",
        Samples::Bytes(|s| bytes(s.pages.retained)),
    ),
    metric("entries", "Promised without a frame", Samples::Bytes(|s| bytes(s.pages.entries))),
    metric(
        "debt",
        "Entries beyond cache and retained",
        Samples::SignedBytes(|s| s.pages.debt.saturating_mul(PAGE_BYTES.cast_signed())),
    ),
    metric(
        "owed",
        "What the guest's balloon has still to give back",
        Samples::SignedBytes(|s| s.pages.owed.saturating_mul(PAGE_BYTES.cast_signed())),
    ),
    metric(
        "ballooned_out",
        "Given back by the guest",
        Samples::Bytes(|s| bytes(s.pages.ballooned_out)),
    ),
    metric(
        "can_touch",
        "How much more the guest can certainly touch",
        Samples::Bytes(|s| bytes(s.pages.can_touch)),
    ),
    metric(
        "likely",
        "How much more a sweep should find, by the results of the last checks",
        Samples::Bytes(|s| bytes(s.pages.likely)),
    ),
    metric(
        "short",
        "Promised beyond what can be touched or found: the guest is exhausted if it touches this",
        Samples::Bytes(|s| bytes(s.pages.short)),
    ),
    metric(
        "borrowed",
        "Held beyond the target because no frame could be found",
        Samples::Bytes(|s| bytes(s.borrowed_pages)),
    ),
    metric("peak", "The most that was ever held", Samples::PeakPages("peak_total_pages")),
    metric(
        "vmm_rss_anon",
        "RssAnon of the VMM, its own memory included",
        Samples::Bytes(|s| s.host.rss_anon_bytes),
    ),
    metric(
        "stalled_threads",
        "Threads of the VMM that wait for a frame",
        Samples::Number(|s| u64::from(s.stalled_threads)),
    ),
    metric(
        "superpages",
        "Superpages of 2 MiB by where they are",
        Samples::Numbers(
            "where",
            &[
                ("guest", |s| s.superpages.in_guest),
                ("cache", |s| s.superpages.in_cache),
                ("broken", |s| s.superpages.broken),
                ("cleared_ahead", |s| s.superpages.cleared_ahead),
            ],
        ),
    ),
    metric(
        "superpages_by_kernel",
        "Superpages that the kernel reports as whole in the guest; 0 when it does not say",
        Samples::Number(|s| s.superpages.in_guest_by_kernel.unwrap_or(0)),
    ),
    metric(
        "fault_latency",
        "From a fault's message to its answer, since the guest's start; quantile 1 is the longest",
        Samples::Seconds(
            "quantile",
            &[
                ("0.5", |s| s.fault_latency.p50_ns),
                ("0.99", |s| s.fault_latency.p99_ns),
                ("1", |s| s.fault_latency.max_ns),
            ],
        ),
    ),
    metric(
        "populates",
        "Populates by size",
        Samples::Counts("size", &[("2M", "populates_2m"), ("4K", "populates_4k")]),
    ),
    metric(
        "zero_checks",
        "Zero checks by size",
        Samples::Counts("size", &[("2M", "zero_checks_2m"), ("4K", "zero_checks_4k")]),
    ),
    metric(
        "zero_checks_hit",
        "Zero checks that found zeros only, by size",
        Samples::Counts("size", &[("2M", "zero_checks_2m_hit"), ("4K", "zero_checks_4k_hit")]),
    ),
    metric(
        "work",
        "Bytes gone through, by what was done with them",
        Samples::CountedBytes(
            "work",
            &[
                ("scanned", "bytes_scanned"),
                ("cleared", "bytes_cleared"),
                ("copied", "bytes_copied"),
            ],
        ),
    ),
    metric(
        "reclaimed",
        "Zero memory taken back, by size of the piece",
        Samples::Counts("size", &[("2M", "superpages_reclaimed"), ("4K", "singles_reclaimed")]),
    ),
    metric(
        "returned",
        "Frames returned to the host, by size of the piece",
        Samples::Counts("size", &[("2M", "superpages_returned"), ("4K", "pages_returned_4k")]),
    ),
    metric(
        "pages",
        "Pages of 4 KiB, by what was done to them",
        Samples::Counts(
            "what",
            &[
                ("given_back", "pages_given_back"),
                ("retained", "pages_retained"),
                ("retaken", "pages_retaken"),
                ("stolen", "pages_stolen"),
                ("consolidated", "pages_consolidated"),
                ("shown", "pages_shown"),
            ],
        ),
    ),
    metric(
        "superpage_events",
        "What was done to superpages",
        Samples::Counts(
            "what",
            &[
                ("splintered", "splinters"),
                ("shattered", "shatters"),
                ("evacuated", "evacuations"),
                ("refilled", "refills"),
            ],
        ),
    ),
    metric(
        "busy_moves",
        "Moves that the kernel refused because a page was in use",
        Samples::Count("busy"),
    ),
];

/// The families of the counters that are not in [`METRICS`].
fn own_families() -> Vec<Metric> {
    let is_left = |counter: &Counter| !METRICS.iter().any(|m| m.samples.has(counter.name));
    let counters = Counters::default();
    let left = counters.iter().map(|(counter, _)| counter).filter(is_left);
    left.map(|Counter { name, help }| {
        metric(name, help.trim_end_matches('.'), Samples::Count(name))
    })
    .collect()
}

/// The value of a counter.
fn count(status: &Status, name: &str) -> u64 {
    let found = status.counters.iter().find(|(counter, _)| counter.name == name);
    found.map_or(0, |(_, value)| value)
}

fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_BYTES)
}

/// What is answered to a scrape.
pub(crate) async fn metrics(
    State(server): State<Server>,
    headers: HeaderMap,
) -> Result<([(HeaderName, &'static str); 2], String), Refusal> {
    let format = Exposition::wanted(&headers);
    let views = poll_all(&server).await?;
    let guests = views.into_iter().filter_map(|(name, view)| match &*view {
        Ok(sample) => Some((name, Some(sample.status.clone()))),
        Err(PollError::Gone) => None,
        Err(PollError::Failed(_)) => Some((name, None)),
    });
    let text = Scrape(guests.collect()).text().map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "server", error.to_string())
    })?;
    let about = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    Ok((about, format.write(text)))
}

/// The guests at the moment of a scrape, with the figures of those that answered.
#[derive(Debug)]
struct Scrape(Vec<(String, Option<Status>)>);

impl Scrape {
    fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn answered(&self) -> impl Iterator<Item = (&str, &Status)> {
        self.0.iter().filter_map(|(name, status)| Some((name.as_str(), status.as_ref()?)))
    }

    fn encode_about(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 if the guest's agent answered";
        let mut family = encoder.encode_descriptor("up", help, None, MetricType::Gauge)?;
        for (name, status) in &self.0 {
            let labels = [("guest", name.as_str())];
            ConstGauge::new(i64::from(status.is_some())).encode(family.encode_family(&labels)?)?;
        }
        let help = "What the guest was started with";
        let mut family = encoder.encode_descriptor("guest", help, None, MetricType::Info)?;
        for (name, status) in self.answered() {
            let labels = [("guest", name)];
            let about = [("policy", status.policy.clone()), ("pid", status.pid.to_string())];
            Info::new(about).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_metric(&self, encoder: &mut DescriptorEncoder<'_>, metric: &Metric) -> fmt::Result {
        let Metric { name, help, samples } = metric;
        let unit = samples.unit();
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), samples.kind())?;
        for (guest, status) in self.answered() {
            let own = [("guest", guest)];
            match samples {
                Samples::Bytes(read) | Samples::Number(read) => {
                    ConstGauge::new(read(status)).encode(family.encode_family(&own)?)?;
                }
                Samples::SignedBytes(read) => {
                    ConstGauge::new(read(status)).encode(family.encode_family(&own)?)?;
                }
                Samples::PeakPages(name) => {
                    let peak = bytes(count(status, name));
                    ConstGauge::new(peak).encode(family.encode_family(&own)?)?;
                }
                Samples::Count(name) => {
                    ConstCounter::new(count(status, name)).encode(family.encode_family(&own)?)?;
                }
                Samples::Numbers(label, all) => {
                    for (value, read) in *all {
                        let labels = [own[0], (*label, *value)];
                        ConstGauge::new(read(status)).encode(family.encode_family(&labels)?)?;
                    }
                }
                Samples::Seconds(label, all) => {
                    for (value, read) in *all {
                        let labels = [own[0], (*label, *value)];
                        let seconds = read(status) as f64 / 1e9;
                        ConstGauge::new(seconds).encode(family.encode_family(&labels)?)?;
                    }
                }
                Samples::Counts(label, all) | Samples::CountedBytes(label, all) => {
                    for (value, name) in *all {
                        let labels = [own[0], (*label, *value)];
                        let count = ConstCounter::new(count(status, name));
                        count.encode(family.encode_family(&labels)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_about(&mut encoder)?;
        METRICS.iter().try_for_each(|metric| self.encode_metric(&mut encoder, metric))?;
        own_families().iter().try_for_each(|metric| self.encode_metric(&mut encoder, metric))
    }
}

#[cfg(test)]
mod tests {
    use prometheus_parse::{Scrape as Parsed, Value};

    use super::*;
    use zerosweep_client::test_support::sample_status;

    fn sample() -> String {
        let status = Status { policy: "zerosweep".into(), ..sample_status("vm") };
        let guests = vec![("vm".to_owned(), Some(status)), ("hung".to_owned(), None)];
        Scrape(guests).text().unwrap()
    }

    fn value(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let parsed = Parsed::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let found = parsed.samples.into_iter().find(|sample| {
            sample.metric == name && labels.iter().all(|(k, v)| sample.labels.get(k) == Some(*v))
        })?;
        match found.value {
            Value::Gauge(value) | Value::Counter(value) | Value::Untyped(value) => Some(value),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_parser_reads_the_figures() {
        let text = sample();
        let status = sample_status("vm");
        let vm = ("guest", "vm");
        for (name, more, expect) in [
            ("zerosweep_up", None, 1.0),
            ("zerosweep_target_bytes", None, (768_u64 << 20) as f64),
            ("zerosweep_held_bytes", None, (status.pages.total * 4096) as f64),
            ("zerosweep_owed_bytes", None, (status.pages.owed * 4096) as f64),
            ("zerosweep_faults_total", None, 123_456_789.0),
            ("zerosweep_work_bytes_total", Some(("work", "scanned")), (3_u64 << 30) as f64),
            ("zerosweep_fault_latency_seconds", Some(("quantile", "0.99")), 92e-6),
            ("zerosweep_superpages", Some(("where", "broken")), 12.0),
            ("zerosweep_state", Some(("state", "managing")), 1.0),
            ("zerosweep_state", Some(("state", "failed")), 0.0),
            ("zerosweep_guest_info", Some(("policy", "zerosweep")), 1.0),
        ] {
            let labels: Vec<_> = more.into_iter().chain([vm]).collect();
            assert_eq!(value(&text, name, &labels), Some(expect), "{name}\n{text}");
        }
        assert_eq!(value(&text, "zerosweep_up", &[("guest", "hung")]), Some(0.0));
        assert_eq!(value(&text, "zerosweep_target_bytes", &[("guest", "hung")]), None);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_older_format_has_the_same_samples() {
        let samples = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let text = Exposition::Text.write(sample());
        assert_eq!(samples(&text), samples(&sample()));
        let parsed = Parsed::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let counters = parsed.samples.iter().filter(|s| s.metric.ends_with("_total"));
        let mut count = 0;
        for counter in counters {
            assert!(matches!(counter.value, Value::Counter(_)), "{counter:?}");
            count += 1;
        }
        assert!(count > 18, "{text}");
        assert!(!text.contains("# UNIT") && !text.contains("# EOF") && !text.contains(" info\n"));
    }

    #[test]
    fn every_counter_is_in_one_family() {
        let counters: Vec<_> = Counters::default().iter().map(|(counter, _)| counter).collect();
        let own = own_families();
        for Counter { name, .. } in &counters {
            let families = METRICS.iter().chain(&own).filter(|metric| metric.samples.has(name));
            assert_eq!(families.count(), 1, "{name}");
        }
        for metric in METRICS {
            let named = match &metric.samples {
                Samples::PeakPages(name) | Samples::Count(name) => vec![*name],
                Samples::Counts(_, all) | Samples::CountedBytes(_, all) => {
                    all.iter().map(|(_, name)| *name).collect()
                }
                _ => vec![],
            };
            for name in named {
                assert!(counters.iter().any(|counter| counter.name == name), "no counter {name}");
            }
        }
    }

    #[test]
    fn the_manual_lists_every_name_and_each_has_its_help() {
        let manual = include_str!("../../../docs/serve.md");
        let text = sample();
        let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
        let mut all = 0;
        for (name, help) in helps.map(|line| line.split_once(' ').unwrap()) {
            let begins = |suffix: &str| text.contains(&format!("\n{name}{suffix}{{"));
            let suffix = ["_total", "_info", ""].into_iter().find(|suffix| begins(suffix));
            let begin = format!("| `{name}{}` |", suffix.unwrap_or_else(|| panic!("no {name}")));
            let end = format!("| {help} |");
            let is_it = |line: &str| line.starts_with(&begin) && line.ends_with(&end);
            assert!(manual.lines().any(is_it), "docs/serve.md has no row {begin} … {end}");
            assert!(help.len() > 10, "{name}: {help}");
            all += 1;
        }
        assert_eq!(all, METRICS.len() + own_families().len() + 2);
    }
}
