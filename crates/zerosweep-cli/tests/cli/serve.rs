//! `zerosweep serve` on fake agents: what it answers, which requests it refuses, and what it costs
//! the agents.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use crate::http::{Answer, Serve};
use crate::support::{FakeAgent, FakeQmp, Place, Server, status, stderr, stdout, wait_until};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use zerosweep_wire::Operation;

/// A place with the guest `vm` and its QEMU.
struct Host {
    place: Place,
    agent: FakeAgent,
    qmp: FakeQmp,
}

impl Host {
    fn new() -> Self {
        let place = Place::new();
        place.make_runtime();
        let agent = FakeAgent::new(place.runtime().join("vm.sock"), status("vm"));
        let qmp = FakeQmp::new(place.runtime().join("vm.qmp"), 1 << 30, true);
        Self { place, agent, qmp }
    }

    fn serve(&self, more: &[&str]) -> Serve {
        let arguments = ["serve", "--json", "--listen", "127.0.0.1:0"];
        Serve::start(self.place.command(&[&arguments, more].concat()))
    }

    fn asked(&self) -> usize {
        self.agent.asked.lock().unwrap().len()
    }
}

fn field<'a>(answer: &'a Answer, pointer: &str) -> &'a Value {
    answer.json.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}: {answer:?}"))
}

#[test]
fn it_answers_what_the_commands_answer() {
    let host = Host::new();
    let serve = host.serve(&[]);
    let list = serve.get("/api/guests");
    let ps = host.place.output(&["ps", "--json"]);
    assert_eq!((list.status, &list.json), (200, &serde_json::from_slice(&ps.stdout).unwrap()));
    let one = serve.get("/api/guests/vm");
    let told = host.place.output(&["status", "vm", "--json"]);
    assert_eq!((one.status, &one.json), (200, &serde_json::from_slice(&told.stdout).unwrap()));
    host.agent.letters.lock().unwrap().push_str("WWrbp.");
    let map = serve.get("/api/guests/vm/map?first=1&count=4");
    assert_eq!(map.json["letters"], "Wrbp");
    assert_eq!(map.json["live"].as_str().unwrap().len(), 12);
    assert_eq!(field(&serve.get("/api/guests/vm/history"), "/samples/0/target_bytes"), 256 << 20);
    assert_eq!(serve.get("/api/openapi.json").json["openapi"], "3.1.0");
    let metrics = serve.get("/metrics");
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    assert!(metrics.text.contains("\nzerosweep_target_bytes{guest=\"vm\"} 268435456\n"));
    for (path, kind) in [
        ("/api/guests/nobody", "no_guest"),
        ("/api/guests/..%2fvm", "no_guest"),
        ("/api/guests/vm/nothing", "path"),
        ("/api/guests/vm/sweep", "method"),
        ("/api/guests/vm/map?first=x", "request"),
        ("/api/events?token=x", "request"),
    ] {
        let answer = serve.get(path);
        assert_eq!(field(&answer, "/error/kind"), kind, "{path}");
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
}

#[test]
fn what_is_described_is_answered_and_no_other_method_is() {
    let host = Host::new();
    let serve = host.serve(&[]);
    let bearer = format!("Bearer {}", serve.token);
    let with = [("authorization", bearer.as_str())];
    let document = serve.get("/api/openapi.json").json;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "nobody");
        for method in ["GET", "POST", "PUT", "DELETE"] {
            if path == "/api/events" && method == "GET" {
                continue;
            }
            let is_described = methods.get(method.to_ascii_lowercase()).is_some();
            let answer = serve.send(method, &path, &with, "");
            assert_eq!(answer.status == 405, !is_described, "{method} {path}: {answer:?}");
            assert_ne!(answer.json.pointer("/error/kind"), Some(&json!("path")), "{path}");
        }
    }
}

#[test]
fn the_target_goes_to_engine_and_balloon() {
    let host = Host::new();
    let serve = host.serve(&[]);
    let path = "/api/guests/vm/target";
    let answer = serve.change(path, &json!({ "target_bytes": 128 << 20 }));
    assert_eq!((answer.status, &answer.json["name"]), (200, &json!("vm")), "{answer:?}");
    let set = Operation::SetTarget { target_bytes: 128 << 20 };
    assert!(host.agent.asked.lock().unwrap().contains(&set));
    let told = host.qmp.asked.lock().unwrap().join("\n");
    assert!(told.contains("\"balloon\"") && told.contains("134217728"), "{told}");
    for (body, status, kind) in [
        (json!({ "target_bytes": 0 }), 422, "value"),
        (json!({ "target_bytes": 4097 }), 422, "value"),
        (json!({ "target_bytes": 2_u64 << 30 }), 422, "value"),
        (json!({ "target_bytes": "1G" }), 422, "request"),
        (json!({ "target": 4096 }), 422, "request"),
        (json!({ "target_bytes": 4096, "x": "y".repeat(5000) }), 413, "request"),
    ] {
        let answer = serve.change(path, &body);
        assert_eq!((answer.status, field(&answer, "/error/kind")), (status, &json!(kind)));
    }
    drop(host.qmp);
    let answer = serve.change(path, &json!({ "target_bytes": 64 << 20 }));
    assert_eq!((answer.status, field(&answer, "/error/kind")), (502, &json!("balloon")));
    assert!(answer.text.contains("has the target 64M now"), "{answer:?}");
}

#[test]
fn sweep_consolidate_and_audit_do_what_the_commands_do() {
    let host = Host::new();
    let serve = host.serve(&[]);
    for (work, says) in [("sweep", "zero superpages"), ("consolidate", "pages moved together")] {
        let answer = serve.change(&format!("/api/guests/vm/{work}"), &Value::Null);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.json["text"].as_str().unwrap().contains(says), "{answer:?}");
    }
    let asked = host.agent.asked.lock().unwrap().clone();
    for operation in [Operation::Sweep { first: 0 }, Operation::Consolidate { first: 0 }] {
        assert!(asked.contains(&operation), "{asked:?}");
    }
    let audit = || serve.change("/api/guests/vm/audit", &Value::Null);
    assert_eq!(audit().json["ok"], true);
    host.agent.status.lock().unwrap().reason = Some("cache is 4, counted 3".into());
    assert_eq!(audit().json["difference"], "cache is 4, counted 3");
}

#[test]
fn who_may_not_is_refused_and_nothing_happens() {
    let host = Host::new();
    let serve = host.serve(&[]);
    let body = json!({ "target_bytes": 64 << 20 }).to_string();
    let json = ("content-type", "application/json");
    let bearer = format!("Bearer {}", serve.token);
    let with = ("authorization", bearer.as_str());
    let own = format!("http://{}", serve.address);
    let before = host.asked();
    for (headers, status) in [
        (vec![json], 401),
        (vec![json, ("authorization", "Bearer 0123456789abcdef")], 401),
        (vec![json, with, ("host", "evil.example")], 421),
        (vec![json, with, ("origin", "http://evil.example")], 403),
        (vec![json, with, ("sec-fetch-site", "cross-site")], 403),
        (vec![("content-type", "text/plain"), with], 415),
    ] {
        let answer = serve.send("POST", "/api/guests/vm/target", &headers, &body);
        assert_eq!(answer.status, status, "{headers:?}: {answer:?}");
    }
    assert_eq!(host.asked(), before);
    let headers = [json, with, ("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(serve.send("POST", "/api/guests/vm/target", &headers, &body).status, 200);
    assert_eq!(serve.send("GET", "/api/guests", &[("host", "evil.example:80")], "").status, 421);
    assert_eq!(serve.send("GET", "/", &[("host", "evil.example:80")], "").status, 421);
    assert_eq!(serve.send("GET", "/metrics", &[("sec-fetch-site", "cross-site")], "").status, 403);
    let again = serve.send("POST", "/api/guests/vm/sweep", &[], "");
    assert_eq!(again.header("www-authenticate"), "Bearer");
    // With or without an answer: nothing here is for other sites.
    for path in ["/", "/page.js", "/api/guests", "/api/guests/nobody", "/metrics"] {
        let answer = serve.get(path);
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert!(!answer.headers.keys().any(|name| name.starts_with("access-control")));
    }
}

#[test]
fn where_others_can_connect_reading_needs_the_token_too() {
    let host = Host::new();
    let token = host.place.path().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = token.to_str().unwrap();
    let mut serve = host.serve(&["--allow-remote", "--token-file", file]);
    // A token from a file is printed nowhere.
    assert_eq!(serve.token, "");
    assert!(!serve.said.contains("0123456789abcdef"), "{}", serve.said);
    for path in ["/api/guests", "/api/events", "/metrics", "/api/openapi.json"] {
        assert_eq!(serve.send("GET", path, &[], "").status, 401, "{path}");
    }
    assert_eq!(serve.get("/").status, 200);
    serve.token = "0123456789abcdef0123456789abcdef".into();
    let bearer = format!("Bearer {}", serve.token);
    let with = ("authorization", bearer.as_str());
    assert_eq!(serve.send("GET", "/api/guests", &[with], "").status, 200);
    let address = [with, ("host", "10.1.2.3:7300")];
    assert_eq!(serve.send("GET", "/api/guests", &address, "").status, 200);
}

#[test]
fn agents_are_asked_only_while_somebody_watches() {
    let host = Host::new();
    let promised = "p".repeat(509);
    host.agent.letters.lock().unwrap().push_str(&format!("WWb{promised}"));
    let serve = host.serve(&[]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(host.asked(), 0, "nobody watches");
    let mut stream = serve.events("/api/events?live=vm");
    let first = stream.next_event("guests");
    assert_eq!(first["guests"], json!(["vm"]));
    assert_eq!(stream.next_event("status")["status"]["name"], "vm");
    assert_eq!(stream.next_event("map")["runs"], "2W1b509p");
    // The map comes again only when it has changed; ten looks a second.
    host.agent.letters.lock().unwrap().replace_range(..3, "WWW");
    assert_eq!(stream.next_event("map")["runs"], "3W509p");
    let (before, began) = (host.asked(), Instant::now());
    wait_until("ten looks", || host.asked() >= before + 10);
    assert!(began.elapsed() > Duration::from_millis(700), "{:?}", began.elapsed());
    // A second page does not double the questions.
    let second = serve.events("/api/events?live=vm");
    let (before, began) = (host.asked(), Instant::now());
    wait_until("twenty looks", || host.asked() >= before + 20);
    let (asked, took) = (host.asked() - before, began.elapsed());
    // A busy machine makes them fewer, never more.
    assert!(asked as f64 <= 13.5 * took.as_secs_f64(), "{asked} looks in {took:?}");
    drop((stream, second));
    std::thread::sleep(Duration::from_millis(1500));
    let before = host.asked();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(host.asked(), before, "nobody watches any more");
}

#[test]
fn a_guest_that_hangs_or_dies_holds_up_nobody() {
    let host = Host::new();
    let silent = Server::new(host.place.runtime().join("hung.sock"), |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let dead = host.place.runtime().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let serve = host.serve(&[]);
    let mut stream = serve.events("/api/events?live=hung");
    let mut seen = 0;
    let began = Instant::now();
    while seen < 3 {
        let event = stream.next_event("status");
        seen += usize::from(event["name"] == "vm" && event["status"]["state"] == "managing");
    }
    assert!(began.elapsed() < Duration::from_millis(2600), "{:?}", began.elapsed());
    let answer = serve.get("/api/guests/vm");
    assert_eq!(answer.status, 200);
    let began = Instant::now();
    let list = serve.get("/api/guests");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    let names: Vec<_> =
        list.json["guests"].as_array().unwrap().iter().map(|guest| &guest["name"]).collect();
    assert_eq!(names, ["hung", "vm"], "the dead one is not there: {list:?}");
    assert!(list.json["guests"][0]["error"].as_str().unwrap().contains("no answer in time"));
    assert_eq!(serve.get("/api/guests/dead").status, 404);
    // One work at a time: the second fails at once, the first when the agent stays silent.
    std::thread::scope(|scope| {
        let first = scope.spawn(|| serve.change("/api/guests/hung/sweep", &Value::Null));
        std::thread::sleep(Duration::from_millis(500));
        let second = serve.change("/api/guests/hung/consolidate", &Value::Null);
        assert_eq!((second.status, field(&second, "/error/kind")), (409, &json!("busy")));
        let first = first.join().unwrap();
        assert_eq!((first.status, field(&first, "/error/kind")), (504, &json!("no_answer")));
    });
    let metrics = serve.get("/metrics").text;
    assert!(metrics.contains("zerosweep_up{guest=\"hung\"} 0\n"), "{metrics}");
    assert!(metrics.contains("zerosweep_up{guest=\"vm\"} 1\n"), "{metrics}");
    assert!(!metrics.contains("dead"), "{metrics}");
    drop(silent);
}

#[test]
fn streams_are_bounded() {
    let host = Host::new();
    let serve = host.serve(&[]);
    let mut streams: Vec<_> = (0..32).map(|_| serve.events("/api/events")).collect();
    for stream in &mut streams {
        stream.next_event("guests");
    }
    let answer = serve.get("/api/events");
    assert_eq!((answer.status, field(&answer, "/error/kind")), (503, &json!("streams")));
    assert_eq!(serve.get("/api/guests/vm").status, 200);
    streams.pop();
    wait_until("there is room again", || {
        let mut stream = serve.events("/api/events");
        stream.status() == 200
    });
}

#[test]
fn a_signal_ends_it() {
    let host = Host::new();
    for signal in [Signal::INT, Signal::TERM] {
        let mut serve = host.serve(&[]);
        let mut stream = serve.events("/api/events");
        stream.next_event("guests");
        rustix::process::kill_process(Pid::from_child(&serve.child), signal).unwrap();
        let began = Instant::now();
        assert_eq!(serve.child.wait().unwrap().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let mut said = String::new();
        serve.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
    }
}

fn fails(output: &Output, code: i32, part: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    assert!(stderr(output).contains(part), "{part}: {}", stderr(output));
    assert_eq!(stdout(output), "");
}

#[test]
fn what_cannot_be_served_is_said() {
    let host = Host::new();
    let serve = host.serve(&[]);
    let place = &host.place;
    let taken = serve.address.clone();
    fails(&place.output(&["serve", "--listen", &taken]), 1, "another program listens there");
    fails(&place.output(&["serve", "--listen", "192.0.2.1:0"]), 2, "--allow-remote");
    let remote = ["serve", "--listen", "192.0.2.1:0", "--allow-remote"];
    fails(&place.output(&remote), 1, "no interface of this machine");
    fails(&place.output(&["serve", "--listen", "here"]), 2, "not an address and a port");
    let missing = place.path().join("no-token");
    let missing = missing.to_str().unwrap();
    fails(&place.output(&["serve", "--token-file", missing]), 1, "umask 077");
    let elsewhere = Place::new();
    std::fs::write(elsewhere.runtime(), "not a directory").unwrap();
    fails(&elsewhere.output(&["serve"]), 1, "is not a directory");
    let nobody = Place::new();
    let mut command = nobody.command(&["serve", "--listen", "127.0.0.1:0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 40];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert!(said.starts_with(b"http://127.0.0.1:"));
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("no guest was started yet"), "{}", stderr(&output));
    assert!(!nobody.runtime().exists());
}

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The client says by `Accept` what it can read.
#[test]
fn metrics_are_in_the_format_that_the_reader_asks_for() {
    let host = Host::new();
    let serve = host.serve(&[]);
    for (accept, format) in [
        // curl, Telegraf, a script; and those who take neither get what most can read.
        ("*/*", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", TEXT),
        ("text/*", TEXT),
        ("application/json", TEXT),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily", TEXT),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.7", TEXT),
        ("application/openmetrics-text;q=0, */*", TEXT),
        ("application/openmetrics-text;version=2.0.0,text/plain;q=0.1", TEXT),
        ("nonsense;;q=x", TEXT),
        // Prometheus 2 and 3.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OPENMETRICS,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            OPENMETRICS,
        ),
        ("Application/OpenMetrics-Text", OPENMETRICS),
        ("text/plain, application/openmetrics-text", OPENMETRICS),
        ("text/plain;q=0.001,application/*;q=0.9", OPENMETRICS),
    ] {
        let answer = serve.send("GET", "/metrics", &[("accept", accept)], "");
        assert_eq!((answer.status, answer.header("content-type")), (200, format), "{accept}");
        assert_eq!(answer.header("vary"), "accept");
        assert_eq!(answer.text.ends_with("# EOF\n"), format == OPENMETRICS, "{accept}");
    }
}

/// The tool that people check such texts with.
#[test]
#[ignore = "needs promtool"]
fn promtool_has_nothing_to_say_about_the_text() {
    let host = Host::new();
    for guests in [1, 0] {
        let serve = host.serve(&[]);
        if guests == 0 {
            std::fs::remove_file(host.place.runtime().join("vm.sock")).unwrap();
        }
        let text = serve.send("GET", "/metrics", &[("accept", "text/plain")], "").text;
        assert_eq!(text.contains("zerosweep_faults_total{guest="), guests == 1, "{text}");
        let mut promtool = std::process::Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = promtool.stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = stdout(&output) + &stderr(&output);
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{text}");
    }
}
