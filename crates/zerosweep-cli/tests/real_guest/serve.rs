//! `zerosweep serve` with a real guest: its target is changed by clicks in the page, and it
//! follows.

use super::browser::{Browser, Scheme};
use super::harness::{Guest, MEBIBYTE, PATIENCE, Place, Spec, stderr, wait_until};
use super::http::Serve;

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and Chromium: cargo xtask test sets them up"]
fn a_target_set_in_the_page_is_followed_by_the_guest() {
    let place = Place::new();
    let run = ["--target", "600M"];
    let append = "zs.fill=96M zs.stir=64M zs.end=idle";
    let guest = Guest::managed(&place, &Spec { run: &run, append, ..Spec::default() });
    let serve = Serve::start(place.command(["serve", "--json", "--listen", "127.0.0.1:0"]));
    // The page is open from the start: it sees the guest boot.
    let mut browser = Browser::new(1280, 1000, Scheme::Light);
    browser.open(&serve.url);
    browser.wait_for_text("#name", "vm", PATIENCE);
    browser.wait_for_text("#map-summary", "1,024 superpages", PATIENCE);
    guest.marker("done ok");
    browser.wait_for_text("#out-more", "nothing owed", PATIENCE);
    for (size, shown) in [("800M", "800 MiB"), ("500M", "500 MiB")] {
        browser.enter("#size", size);
        browser.click("#set");
        let told = browser.wait_for_text("#outcome", "The target is", PATIENCE);
        assert!(told.contains(shown), "{told}");
        let bytes = size.trim_end_matches('M').parse::<u64>().unwrap() * MEBIBYTE;
        assert_eq!(guest.status().target_bytes, bytes);
        wait_until("the guest's balloon has followed", PATIENCE, || {
            (guest.qmp().balloon_actual().unwrap() == bytes).then_some(())
        });
        wait_until("it holds no more than that", PATIENCE, || {
            let pages = guest.status().pages;
            (pages.owed <= 0 && pages.total <= pages.target).then_some(())
        });
        browser.wait_for_text("#held-more", &format!("target {shown}"), PATIENCE);
        wait_until("the page shows it", PATIENCE, || {
            let held = browser.text("#held");
            let mebibytes: f64 = held.strip_suffix(" MiB")?.parse().unwrap();
            (mebibytes <= (bytes / MEBIBYTE) as f64).then_some(())
        });
    }
    // What the page shows is what the agent says, but for what the guest does meanwhile.
    wait_until("the page shows the guest's superpages", PATIENCE, || {
        let in_guest = guest.status().superpages.in_guest;
        let counts =
            browser.value("[...document.querySelectorAll('#legend b')].map((b) => b.innerText)");
        let count = |i: usize| counts[i].as_str().unwrap().replace(',', "").parse::<u64>().unwrap();
        ((count(0) + count(1)).abs_diff(in_guest) <= 8).then_some(())
    });
    for (work, says) in [
        ("sweep", "zero superpages taken back"),
        ("consolidate", "pages moved together"),
        ("audit", "Every figure agrees"),
    ] {
        browser.click(&format!("[data-work={work}]"));
        browser.wait_for_text("#outcome", says, PATIENCE);
    }
    assert_eq!(browser.complaints, [""; 0]);
    let output = place.output(["audit", "vm"]);
    assert!(output.status.success(), "{}", stderr(&output));
    if guest.console.has("zerosweep-guest: damaged") {
        guest.fail("the guest is damaged");
    }
}
