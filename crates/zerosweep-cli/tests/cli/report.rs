//! The HTML report in a real browser: it needs nothing from outside, shows every run, fits a phone,
//! and is light or dark as the reader wishes.
//!
//! A page of our own has the report in a frame of a phone's width, measures it, and writes what it
//! found into its own text, which Chromium prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Place, stderr, stdout};
use serde_json::{Value, json};

const PHONE: (u32, u32) = (390, 844);
/// How long Chromium may take to start: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);
/// A PNG of a phone's screen with one colour only is far smaller.
const NOT_BLANK_BYTES: usize = 20_000;

/// What Chromium thinks the reader wishes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Dark = 0,
    Light = 1,
}

const MEASURE: &str = "<!doctype html><body style='margin:0'>\
    <iframe id=report src=report.html style='border:0;width:390px;height:844px'></iframe>\
    <pre id=found></pre><script>\
    report.onload = () => {\
      const page = report.contentDocument, root = page.documentElement;\
      const all = (what) => [...page.querySelectorAll(what)];\
      const plots = all('svg').map((svg) => svg.getBoundingClientRect());\
      found.textContent = JSON.stringify({\
        scroll_width: root.scrollWidth, width: root.clientWidth,\
        rows: all('tbody tr').length, sections: all('section').length, plots: plots.length,\
        least_plot_width: Math.min(...plots.map((plot) => plot.width)),\
        least_plot_height: Math.min(...plots.map((plot) => plot.height)),\
        scripts: all('script').length, links: all('[src],[href]').length,\
        fetched: report.contentWindow.performance.getEntriesByType('resource').length,\
        background: report.contentWindow.getComputedStyle(page.body).backgroundColor,\
        text: page.body.innerText,\
      });\
    };</script>";

fn chromium_program() -> PathBuf {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap();
    let all = std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name)));
    all.into_iter().find(|file| file.is_file()).expect("Chromium: apt-get install chromium")
}

/// Runs Chromium without a window, a network, or a profile of the user's.
fn chromium(place: &Place, scheme: Scheme, more: &[&str], page: &Path) -> Output {
    let mut command = Command::new(chromium_program());
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update"]);
    command.args(["--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"]);
    command.arg(format!("--user-data-dir={}", place.path().join("profile").display()));
    command.arg(format!("--blink-settings=preferredColorScheme={}", scheme as u8));
    command.args(more).arg(format!("file://{}", page.display()));
    let out = place.path().join("chromium-says");
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(std::fs::File::create(&out).unwrap());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("Chromium did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut output = child.wait_with_output().unwrap();
    output.stdout = std::fs::read(out).unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// A report on guest models, with timelines, and on a real guest; the number of its runs.
fn write_report(place: &Place) -> usize {
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let [models, real, report] = ["models.json", "real.json", "report.html"].map(path);
    let sizes = ["experiment", "--max-mem", "64M", "--target", "16M", "--out", &models];
    assert_eq!(place.output(&sizes).status.code(), Some(0));
    let mut document: Value = serde_json::from_slice(&std::fs::read(&models).unwrap()).unwrap();
    let of_models = document["runs"].as_array().unwrap().len();
    // The same shape as that of a real guest, whatever its figures.
    let mut runs = Vec::new();
    for (policy, outcome) in [("plain", "ok"), ("none", "stalled"), ("zerosweep", "ok")] {
        let mut run = document["runs"][5].clone();
        let fields = json!({
            "guest": "qemu-churn", "policy": policy, "machine": "qemu", "outcome": outcome,
            "accelerator": "tcg", "time_kind": "measured", "timeline": null,
            "limit_superpages_free": null, "limit_bytes_scanned": null,
        });
        for (name, value) in fields.as_object().unwrap() {
            run[name] = value.clone();
        }
        runs.push(run);
    }
    let all = of_models + runs.len();
    document["runs"] = Value::Array(runs);
    std::fs::write(&real, document.to_string()).unwrap();
    let merge = place.output(&["experiment", "merge", &models, &real, "--report", &report]);
    assert_eq!(merge.status.code(), Some(0), "{}", stderr(&merge));
    all
}

/// What the measuring page found.
fn measure(place: &Place, scheme: Scheme) -> Value {
    let page = place.path().join("measure.html");
    std::fs::write(&page, MEASURE).unwrap();
    let more = ["--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom"];
    let output = chromium(place, scheme, &more, &page);
    let dom = stdout(&output);
    let start = dom.find("<pre id=\"found\">").unwrap() + "<pre id=\"found\">".len();
    let text = &dom[start..start + dom[start..].find("</pre>").unwrap()];
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

#[test]
#[ignore = "needs Chromium: apt-get install chromium"]
fn it_shows_every_run_and_fits_a_phone() {
    let place = Place::new();
    let runs = write_report(&place);
    let found = measure(&place, Scheme::Light);
    let number = |name: &str| found[name].as_f64().unwrap_or_else(|| panic!("{name}: {found:#}"));
    assert_eq!(number("rows") as usize, runs, "a row a run");
    assert_eq!(number("sections") as usize, 7, "six models and a real guest");
    // Two plots a model, four a real guest, two for each timeline.
    assert_eq!(number("plots") as usize, 6 * 2 + 4 + 2 * (runs - 3));
    assert!(number("least_plot_width") > 200.0 && number("least_plot_height") > 40.0, "{found:#}");
    assert_eq!(number("scroll_width"), f64::from(PHONE.0), "nothing sticks out at the side");
    for nothing in ["scripts", "links", "fetched"] {
        assert_eq!(number(nothing) as u64, 0, "{nothing}");
    }
    let text = found["text"].as_str().unwrap();
    for part in ["Modelled times", "under QEMU on its software CPU", "stalled", "–"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
#[ignore = "needs Chromium: apt-get install chromium"]
fn it_is_light_or_dark() {
    let place = Place::new();
    write_report(&place);
    let background = |scheme| measure(&place, scheme)["background"].as_str().unwrap().to_owned();
    assert_eq!(background(Scheme::Light), "rgb(255, 255, 255)");
    let dark = background(Scheme::Dark);
    let colours = dark.trim_start_matches("rgb(").trim_end_matches(')').split(", ");
    assert!(colours.map(|c| c.parse::<u32>().unwrap()).all(|c| c < 64), "{dark}");
    let light = screenshot(&place, Scheme::Light);
    let dark = screenshot(&place, Scheme::Dark);
    assert_ne!(light, dark);
}

/// The first screen on a phone, as a PNG.
fn screenshot(place: &Place, scheme: Scheme) -> Vec<u8> {
    let file = place.path().join("screen.png");
    let (width, height) = PHONE;
    let size = format!("--window-size={width},{height}");
    let more = [&size, "--enable-logging=stderr", &format!("--screenshot={}", file.display())];
    let output = chromium(place, scheme, &more, &place.path().join("report.html"));
    let said = stderr(&output);
    assert!(!said.contains("CONSOLE"), "the browser complains: {said}");
    let png = std::fs::read(file).unwrap();
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((&png[1..4], number(16), number(20)), (b"PNG".as_slice(), width, height));
    assert!(png.len() > NOT_BLANK_BYTES, "blank: {} bytes", png.len());
    png
}
