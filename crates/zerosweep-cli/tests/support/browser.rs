//! Chromium without a window, driven over its debugging pipe: real clicks and keys in the page.
//!
//! The pipe is file descriptors 3 and 4 of Chromium; a shell puts standard input and output there.
//! A message is JSON with a zero byte behind it.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(unreachable_pub, reason = "shared by several test programs")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long Chromium may take for one answer: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);
const PIPE: &str = "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";

/// What Chromium thinks the reader wishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Dark,
    Light,
}

/// One page in one browser; dropping it ends both.
pub struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    last_id: u64,
    /// What the page or the browser found wrong.
    pub complaints: Vec<String>,
    _profile: TempDir,
}

/// Chromium, if it is there.
fn program() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap();
    let all = std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name)));
    all.into_iter().find(|file| file.is_file())
}

impl Browser {
    /// Processor time of all processes of the browser, so far.
    pub fn processor_time(&self) -> Duration {
        processor_time_of(&self.child)
    }

    /// A page of that size, still empty.
    pub fn new(width: u32, height: u32, scheme: Scheme) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", PIPE, "sh"])
            .arg(program().expect("Chromium: apt-get install chromium"));
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update"]);
        command.args(["--hide-scrollbars", "--remote-debugging-pipe"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, messages) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            input: child.stdin.take().unwrap(),
            child,
            messages,
            session: None,
            last_id: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.resize(width, height);
        let scheme = if scheme == Scheme::Dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        browser
    }

    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    /// Asks Chromium and waits for its answer.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut answer = self.messages.recv_timeout(left).expect("Chromium answers");
            if answer["id"] == self.last_id {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
            let level = answer.pointer("/params/entry/level").and_then(Value::as_str);
            if answer["method"] == "Runtime.exceptionThrown" || level == Some("error") {
                self.complaints.push(answer["params"].to_string());
            }
        }
    }

    /// The value of an expression in the page.
    #[track_caller]
    pub fn value(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", params);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Whose text an element has.
    #[track_caller]
    pub fn text(&mut self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({selector:?})?.innerText"));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element's text has a part.
    #[track_caller]
    pub fn wait_for_text(&mut self, selector: &str, part: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let text = self.text(selector);
            if text.contains(part) {
                return text;
            }
            assert!(Instant::now() < deadline, "{selector} has {text:?}, not {part:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Clicks with the mouse into the middle of an element.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let place = self.value(&format!(
            "(() => {{ const it = document.querySelector({selector:?});\
             it.scrollIntoView({{ block: 'center' }});\
             const box = it.getBoundingClientRect();\
             return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Replaces the text of a field, by keys.
    #[track_caller]
    pub fn enter(&mut self, selector: &str, text: &str) {
        self.click(selector);
        let all = json!({
            "type": "keyDown", "key": "a", "code": "KeyA", "modifiers": 2, "commands": ["selectAll"],
        });
        self.call("Input.dispatchKeyEvent", all);
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Presses a key: `Tab`, `Enter`.
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            _ => panic!("no key {key}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text,
            });
            self.call("Input.dispatchKeyEvent", event);
        }
    }
}

/// Processor time of a process and of all that came from it, so far.
pub fn processor_time_of(child: &Child) -> Duration {
    let mut stats: Vec<Stat> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Stat::of)
        .collect();
    let mut family = vec![child.id()];
    let mut ticks = 0;
    while let Some(pid) = family.pop() {
        ticks += stats.iter().filter(|stat| stat.pid == pid).map(|stat| stat.ticks).sum::<u64>();
        family.extend(stats.extract_if(.., |stat| stat.parent == pid).map(|stat| {
            ticks += stat.ticks;
            stat.pid
        }));
    }
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// What is of interest in `/proc/PID/stat`.
struct Stat {
    pid: u32,
    parent: u32,
    /// Of the process and of its children that have ended.
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = fields[11..15].iter().filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Self { pid, parent: fields[1].parse().ok()?, ticks })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
