//! The two formats of the figures, and the choice between them.
//!
//! A reader that asks for OpenMetrics (as Prometheus does) or for nothing gets OpenMetrics. All
//! others get the older text format, which everybody reads.

use std::fmt::Write as _;

use axum::http::{HeaderMap, header};
use mediatype::{MediaType, MediaTypeList, ReadParams as _};

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exposition {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Exposition {
    /// What the reader wants, by `Accept`.
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let mut accepts = headers.get_all(header::ACCEPT).iter().peekable();
        if accepts.peek().is_none() {
            return Self::OpenMetrics;
        }
        let (mut open, mut plain) = (Weight::default(), Weight::default());
        for accept in accepts.filter_map(|value| value.to_str().ok()) {
            for range in MediaTypeList::new(accept).filter_map(Result::ok) {
                open.count(&range, ("application", "openmetrics-text"), &["1.0.0", "0.0.1"]);
                plain.count(&range, ("text", "plain"), &["0.0.4"]);
            }
        }
        let is_named = open.specificity == 2;
        if open.thousandths > plain.thousandths
            || is_named && open.thousandths > 0 && open.thousandths == plain.thousandths
        {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// The value of `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The OpenMetrics text in this format.
    pub(crate) fn write(self, openmetrics: String) -> String {
        match self {
            Self::OpenMetrics => openmetrics,
            Self::Text => plain(&openmetrics),
        }
    }
}

/// How much a reader wants a format: by the range that names it most exactly.
#[derive(Debug, Default)]
struct Weight {
    /// 0 for `*/*`, 1 for `text/*`, 2 for `text/plain`.
    specificity: u8,
    thousandths: u16,
}

impl Weight {
    fn count(&mut self, range: &MediaType<'_>, name: (&str, &str), versions: &[&str]) {
        let (main, sub) = (range.ty.as_str(), range.subty.as_str());
        let is = |word: &str, name: &str| word.eq_ignore_ascii_case(name);
        let specificity = match (is(main, name.0), is(sub, name.1)) {
            (true, true) => 2,
            (true, false) if sub == "*" => 1,
            _ if main == "*" && sub == "*" => 0,
            _ => return,
        };
        let parameter = |wanted: &str| {
            let mut all = range.params();
            all.find(|(key, _)| is(key.as_str(), wanted))
                .map(|(_, value)| value.unquoted_str().into_owned())
        };
        if parameter("version").is_some_and(|version| !versions.contains(&version.as_str())) {
            return;
        }
        let thousandths = match parameter("q").map(|q| q.parse::<f64>()) {
            None => 1000,
            Some(Ok(q)) if (0.0..=1.0).contains(&q) => (q * 1000.0).round() as u16,
            Some(_) => 0,
        };
        if specificity > self.specificity {
            (self.specificity, self.thousandths) = (specificity, thousandths);
        } else if specificity == self.specificity {
            self.thousandths = self.thousandths.max(thousandths);
        }
    }
}

/// The head of a family of OpenMetrics.
#[derive(Clone, Copy, Default)]
struct Family<'a> {
    name: &'a str,
    help: &'a str,
}

/// Rewrites what the OpenMetrics encoder says of its families; samples are written alike. A counter
/// has its samples' name; an *info* is a gauge that is 1; what has quantiles is a summary.
fn plain(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut family = Family::default();
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(about) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let mut words = about.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(name), help) => family = Family { name, help: help.unwrap_or("") },
            (Some("TYPE"), Some(_), Some(kind)) => {
                if lines.peek().is_some_and(|line| line.starts_with("# UNIT ")) {
                    lines.next();
                }
                let has_quantiles = lines.peek().is_some_and(|line| line.contains(",quantile=\""));
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "gauge" if has_quantiles => ("", "summary"),
                    _ => ("", kind),
                };
                let Family { name, help } = family;
                // Writing to a string cannot fail.
                let _ =
                    write!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
            }
            // UNIT and EOF are unknown to the older format.
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_announced_as_the_older_format_has_them() {
        let openmetrics = "\
# HELP a_faults Faults \\\\ answered.\n# TYPE a_faults counter\na_faults_total{guest=\"x\"} 7\n\
# HELP a_guest About.\n# TYPE a_guest info\na_guest_info{guest=\"# HELP x\",pid=\"1\"} 1\n\
# HELP a_time_seconds Time.\n# TYPE a_time_seconds gauge\n# UNIT a_time_seconds seconds\n\
a_time_seconds{guest=\"x\",quantile=\"0.5\"} 0.25\n\
# HELP a_bytes Bytes.\n# TYPE a_bytes gauge\n# UNIT a_bytes bytes\n# EOF\n";
        let expect = "\
# HELP a_faults_total Faults \\\\ answered.\n# TYPE a_faults_total counter\na_faults_total{guest=\"x\"} 7\n\
# HELP a_guest_info About.\n# TYPE a_guest_info gauge\na_guest_info{guest=\"# HELP x\",pid=\"1\"} 1\n\
# HELP a_time_seconds Time.\n# TYPE a_time_seconds summary\n\
a_time_seconds{guest=\"x\",quantile=\"0.5\"} 0.25\n\
# HELP a_bytes Bytes.\n# TYPE a_bytes gauge\n";
        assert_eq!(plain(openmetrics), expect);
    }

    #[test]
    fn who_says_nothing_gets_what_was_always_given() {
        assert_eq!(Exposition::wanted(&HeaderMap::new()), Exposition::OpenMetrics);
        let mut headers = HeaderMap::new();
        headers.append(header::ACCEPT, "text/plain;q=0.5".parse().unwrap());
        assert_eq!(Exposition::wanted(&headers), Exposition::Text);
        headers.append(header::ACCEPT, "application/openmetrics-text;q=0.6".parse().unwrap());
        assert_eq!(Exposition::wanted(&headers), Exposition::OpenMetrics, "two lines are one list");
    }
}
