//! The counters of a guest, as an object of numbers in JSON.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;
use zerosweep::{Counter, Statistics};

/// What has been done since the start. A counter that an older agent does not have is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Faults answered.
    pub faults: u64,
    /// The counters of the engine. `borrowed` and `rejoined` are not in messages.
    pub engine: Statistics,
}

const FAULTS: Counter = Counter { name: "faults", help: "Faults answered." };

/// Returns a counter as it is in messages, if it is.
fn named(counter: &Counter) -> Option<Counter> {
    match counter.name {
        // `Status::borrowed_pages` says how many are borrowed now.
        "borrowed" | "rejoined" => None,
        "peak_total" => Some(Counter { name: "peak_total_pages", ..*counter }),
        _ => Some(*counter),
    }
}

impl Counters {
    /// Returns the counters that are in messages, with their values.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> {
        let engine = self.engine.iter();
        std::iter::once((FAULTS, self.faults))
            .chain(engine.filter_map(|(counter, value)| Some((named(counter)?, value))))
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = (Counter, &mut u64)> {
        let engine = self.engine.iter_mut();
        std::iter::once((FAULTS, &mut self.faults))
            .chain(engine.filter_map(|(counter, value)| Some((named(counter)?, value))))
    }
}

impl Serialize for Counters {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter().map(|(counter, value)| (counter.name, value)))
    }
}

impl<'de> Deserialize<'de> for Counters {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let fields = HashMap::<String, Value>::deserialize(from)?;
        let mut counters = Self::default();
        for (Counter { name, .. }, value) in counters.iter_mut() {
            if let Some(field) = fields.get(name) {
                *value = u64::deserialize(field)
                    .map_err(|error| D::Error::custom(format_args!("{name}: {error}")))?;
            }
        }
        Ok(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts read these.
    const NAMES: [&str; 30] = [
        "faults",
        "populates_2m",
        "populates_4k",
        "zero_checks_2m",
        "zero_checks_2m_hit",
        "zero_checks_4k",
        "zero_checks_4k_hit",
        "bytes_scanned",
        "bytes_cleared",
        "bytes_copied",
        "eager_checks",
        "emergency_sweeps",
        "splinters",
        "shatters",
        "superpages_reclaimed",
        "singles_reclaimed",
        "pages_stolen",
        "superpages_returned",
        "pages_returned_4k",
        "pages_given_back",
        "exhaustions",
        "unmap_flushes",
        "busy",
        "peak_total_pages",
        "low_forecasts",
        "evacuations",
        "refills",
        "pages_retained",
        "pages_retaken",
        "pages_consolidated",
    ];

    fn sample() -> Counters {
        let mut counters = Counters::default();
        for (number, (_, value)) in counters.iter_mut().enumerate() {
            *value = number as u64 + 1;
        }
        counters
    }

    #[test]
    fn the_names_of_the_first_version_stay() {
        let document = serde_json::to_value(sample()).unwrap();
        for name in NAMES {
            assert!(document[name].is_u64(), "{name} is not in {document}");
        }
        assert!(document.get("borrowed").is_none() && document.get("rejoined").is_none());
        assert!(document.as_object().unwrap().len() >= NAMES.len());
    }

    #[test]
    fn what_is_written_reads_as_the_same() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert!(text.starts_with(r#"{"faults":1,"populates_2m":2,"#), "{text}");
        assert_eq!(serde_json::from_str::<Counters>(&text).unwrap(), sample());
    }

    #[test]
    fn other_versions_have_other_counters() {
        let text = r#"{"faults":7,"peak_total_pages":9,"of_a_newer_agent":{"a":[]}}"#;
        let counters: Counters = serde_json::from_str(text).unwrap();
        let engine = Statistics { peak_total: 9, ..Statistics::default() };
        assert_eq!(counters, Counters { faults: 7, engine });
        let error = serde_json::from_str::<Counters>(r#"{"busy":-1}"#).unwrap_err().to_string();
        assert!(error.starts_with("busy: invalid value: integer `-1`"), "{error}");
    }
}
