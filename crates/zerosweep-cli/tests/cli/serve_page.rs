//! The page of `zerosweep serve` in a real browser, on fake agents.
//!
//! One test at a time: frames are counted.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::browser::{Browser, Scheme, processor_time_of};
use crate::http::Serve;
use crate::support::{FakeAgent, FakeQmp, Place, status};
use serde_json::json;
use zerosweep_wire::{Operation, State};

const SOON: Duration = Duration::from_secs(60);
const PHONE: (u32, u32) = (390, 844);
const DESKTOP: (u32, u32) = (1280, 1000);

/// Superpages of 64 GiB.
const MANY: usize = 32_768;
/// How long frames are counted.
const COUNTED: Duration = Duration::from_secs(5);

/// Counts the frames in which something was drawn on the map.
const COUNT_FRAMES: &str = "\
    window.framesDrawn = new Set();\
    for (const name of ['fillRect', 'putImageData']) {\
      const draw = CanvasRenderingContext2D.prototype[name];\
      CanvasRenderingContext2D.prototype[name] = function (...what) {\
        if (this.canvas.id === 'map') window.framesDrawn.add(document.timeline.currentTime);\
        return draw.apply(this, what);\
      };\
    }";

/// Held by the test that runs.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place_with(names: &[&str]) -> (Place, Vec<FakeAgent>) {
    let place = Place::new();
    place.make_runtime();
    let agent =
        |name: &&str| FakeAgent::new(place.runtime().join(format!("{name}.sock")), status(name));
    let agents: Vec<_> = names.iter().map(agent).collect();
    for agent in &agents {
        agent.letters.lock().unwrap().push_str(&"WWWWWWrb..pppppp".repeat(32));
    }
    (place, agents)
}

fn serve(place: &Place) -> Serve {
    Serve::start(place.command(&["serve", "--json", "--listen", "127.0.0.1:0"]))
}

fn open(serve: &Serve, (width, height): (u32, u32), scheme: Scheme) -> Browser {
    let mut browser = Browser::new(width, height, scheme);
    browser.open(&serve.url);
    browser.wait_for_text("#link", "Live", SOON);
    browser.wait_for_text("#map-summary", "512 superpages", SOON);
    browser
}

#[test]
#[ignore = "needs Chromium: apt-get install chromium"]
fn it_shows_a_guest_and_sets_its_target() {
    let _alone = alone();
    let (place, agents) = place_with(&["db1", "web1"]);
    let _qmp = FakeQmp::new(place.runtime().join("web1.qmp"), 1 << 30, true);
    let serve = serve(&place);
    let mut browser = open(&serve, DESKTOP, Scheme::Light);
    // The token is taken out of the address, and nothing is fetched from elsewhere.
    let address = browser.value("location.href");
    assert!(!address.as_str().unwrap().contains(&serve.token), "{address}");
    let origins = browser.value(
        "[...new Set(performance.getEntriesByType('resource').map((r) => new URL(r.name).host))]",
    );
    assert_eq!(origins, json!([serve.address]));
    assert_eq!(browser.text("#name"), "db1");
    assert!(browser.text("#guests-title").contains("(2)"));
    let summary = browser.text("#map-summary");
    for part in ["192 whole", "32 broken", "192 promised", "64 ballooned out"] {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    browser.click("#guests li:nth-child(2) button");
    browser.wait_for_text("#name", "web1", SOON);
    browser.enter("#size", "nonsense");
    browser.click("#set");
    browser.wait_for_text("#outcome", "is not a size", SOON);
    browser.enter("#size", "192M");
    browser.click("#set");
    browser.wait_for_text("#outcome", "The target is", SOON);
    let set = Operation::SetTarget { target_bytes: 192 << 20 };
    assert!(agents[1].asked.lock().unwrap().contains(&set));
    assert!(!agents[0].asked.lock().unwrap().contains(&set));
    browser.click("[data-work=sweep]");
    browser.wait_for_text("#outcome", "zero superpages taken back", SOON);
    browser.enter("#pick", "7");
    browser.press("Enter");
    browser.wait_for_text("#picked", "7: broken, 14 MiB to 16 MiB, gfn 0xe00; 512 of 512", SOON);
    assert_eq!(browser.complaints, [""; 0]);
}

#[test]
#[ignore = "needs Chromium: apt-get install chromium"]
fn troubles_are_told_as_text() {
    let _alone = alone();
    let (place, agents) = place_with(&["vm"]);
    {
        let mut status = agents[0].status.lock().unwrap();
        status.state = State::CapLifted;
        status.reason = Some("<img src=x onerror=document.title='owned'> EINVAL".into());
        status.stalled_threads = 2;
        status.borrowed_pages = 256;
    }
    let serve = serve(&place);
    let mut browser = open(&serve, DESKTOP, Scheme::Light);
    let alerts = browser.text("#alerts");
    for part in ["without its memory limit", "<img src=x", "waits for memory (threads: 2)", "1 MiB"]
    {
        assert!(alerts.contains(part), "{part}: {alerts}");
    }
    assert_eq!(browser.value("document.querySelectorAll('#alerts img').length"), 0);
    {
        let mut status = agents[0].status.lock().unwrap();
        status.state = State::Managing;
        (status.stalled_threads, status.borrowed_pages) = (0, 0);
        (status.pages.entries, status.pages.can_touch, status.pages.short) = (2560, 512, 2048);
    }
    let text = browser.wait_for_text("#alerts", "Forecast", SOON);
    assert!(text.contains("Of the 10 MiB") && text.contains("8 MiB are missing"), "{text}");
    // The guest ends: the page says so, and has room for the next.
    drop(agents);
    std::fs::remove_file(place.runtime().join("vm.sock")).unwrap();
    browser.wait_for_text("#nobody", "No guest is running", SOON);
    assert_eq!(browser.complaints, [""; 0]);
}

#[test]
#[ignore = "needs Chromium: apt-get install chromium"]
fn without_the_token_it_only_shows() {
    let _alone = alone();
    let (place, agents) = place_with(&["vm"]);
    let _qmp = FakeQmp::new(place.runtime().join("vm.qmp"), 1 << 30, true);
    let mut serve = serve(&place);
    let with_token = std::mem::replace(&mut serve.url, format!("http://{}/", serve.address));
    let mut browser = open(&serve, DESKTOP, Scheme::Light);
    browser.click("#set");
    browser.click("[data-work=sweep]");
    assert!(!agents[0].asked.lock().unwrap().contains(&Operation::Sweep { first: 0 }));
    browser.enter("#token", "0123456789abcdef");
    browser.press("Enter");
    browser.wait_for_text("#link", "Live", SOON);
    browser.click("#set");
    browser.wait_for_text("#outcome", "token", SOON);
    browser.enter("#token", with_token.split("token=").nth(1).unwrap());
    browser.press("Enter");
    browser.enter("#size", "128M");
    browser.press("Enter");
    browser.wait_for_text("#outcome", "The target is", SOON);
    let set = Operation::SetTarget { target_bytes: 128 << 20 };
    assert!(agents[0].asked.lock().unwrap().contains(&set));
}

#[test]
#[ignore = "needs Chromium: apt-get install chromium"]
fn it_fits_a_phone_and_is_light_or_dark() {
    let _alone = alone();
    let (place, _agents) = place_with(&["a-guest-with-a-very-long-name-48-bytes-at-longest", "vm"]);
    let serve = serve(&place);
    let mut background = Vec::new();
    for scheme in [Scheme::Light, Scheme::Dark] {
        let mut browser = open(&serve, PHONE, scheme);
        for width in [320, PHONE.0] {
            browser.resize(width, PHONE.1);
            let found = browser.value("document.documentElement.scrollWidth");
            assert_eq!(found, width, "nothing sticks out at the side");
            let canvas = browser.value("document.querySelector('#map').clientWidth");
            assert!(canvas.as_f64().unwrap() > 200.0, "{canvas}");
        }
        background.push(browser.value("getComputedStyle(document.body).backgroundColor"));
        assert_eq!(browser.complaints, [""; 0]);
    }
    assert_ne!(background[0], background[1]);
}

#[test]
#[ignore = "needs Chromium: apt-get install chromium"]
fn keys_reach_everything_and_everything_has_a_name() {
    let _alone = alone();
    let (place, _agents) = place_with(&["one", "two"]);
    let serve = serve(&place);
    let mut browser = open(&serve, DESKTOP, Scheme::Light);
    let mut reached = BTreeSet::new();
    for _ in 0..20 {
        browser.press("Tab");
        let id = browser.value(
            "(() => { const it = document.activeElement;\
             const seen = it.matches(':focus-visible') && getComputedStyle(it).outlineStyle;\
             return `${it.id || it.dataset.work || it.innerText.split('\\n')[0]} ${seen}`; })()",
        );
        reached.insert(id.as_str().unwrap().to_owned());
    }
    for id in ["one", "two", "pick", "slide", "size", "set", "sweep", "consolidate", "audit", "API"]
    {
        assert!(reached.contains(&format!("{id} solid")), "{id}: {reached:?}");
    }
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let mut named = 0;
    for node in tree["nodes"].as_array().unwrap() {
        let role = node.pointer("/role/value").and_then(|role| role.as_str()).unwrap_or_default();
        let name = node.pointer("/name/value").and_then(|name| name.as_str()).unwrap_or_default();
        let is_ignored = node["ignored"].as_bool().unwrap();
        if matches!(role, "button" | "textbox" | "spinbutton" | "slider" | "image" | "navigation")
            && !is_ignored
        {
            assert!(!name.is_empty(), "{node}");
            named += 1;
        }
    }
    assert!(named >= 10, "{named}");
}

#[test]
#[ignore = "needs Chromium: apt-get install chromium"]
fn the_map_of_64_gib_is_drawn_ten_times_a_second() {
    let _alone = alone();
    let (place, agents) = place_with(&["large"]);
    {
        let mut status = agents[0].status.lock().unwrap();
        status.max_mem_bytes = 64 << 30;
        *agents[0].letters.lock().unwrap() = "p".repeat(MANY);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, letters) = (Arc::clone(&stop), Arc::clone(&agents[0].letters));
    // A guest in turmoil: a fifth of its superpages change 25 times a second.
    let turmoil = std::thread::spawn(move || {
        let mut seed = 1_u32;
        while !stopped.load(Ordering::Relaxed) {
            let mut next = std::mem::take(&mut *letters.lock().unwrap()).into_bytes();
            for letter in &mut next {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if seed >> 30 == 0 {
                    *letter = b"Wrbp."[(seed >> 8) as usize % 5];
                }
            }
            *letters.lock().unwrap() = String::from_utf8(next).unwrap();
            std::thread::sleep(Duration::from_millis(40));
        }
    });
    let serve = serve(&place);
    let mut browser = Browser::new(DESKTOP.0, DESKTOP.1, Scheme::Light);
    browser.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": COUNT_FRAMES }));
    browser.open(&serve.url);
    browser.wait_for_text("#map-summary", "32,768 superpages", SOON);
    browser.value("window.framesDrawn.clear()");
    let (began, busy) =
        (Instant::now(), browser.processor_time() + processor_time_of(&serve.child));
    std::thread::sleep(COUNTED);
    let frames = browser.value("window.framesDrawn.size").as_f64().unwrap();
    let took = browser.processor_time() + processor_time_of(&serve.child) - busy;
    let rate = frames / began.elapsed().as_secs_f64();
    let cost = took.as_secs_f64() / frames;
    println!("\n  {rate:.1} frames a second of {MANY} superpages, {:.1} ms each", cost * 1e3);
    // Processor time, because others may have the machine: it is what one core has for a frame.
    assert!(cost <= 0.1, "{:.1} ms of processor time for a frame", cost * 1e3);
    stop.store(true, Ordering::Relaxed);
    turmoil.join().unwrap();
}
