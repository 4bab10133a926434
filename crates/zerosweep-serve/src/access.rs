//! Access control of requests.
//!
//! | a request with | is refused |
//! | --- | --- |
//! | a `Host` that is no name of this server | always: another site can point its own name here (DNS rebinding) |
//! | `Sec-Fetch-Site` or `Origin` of another site | always, except for the page itself: other sites may link to it |
//! | no token | if it changes a guest; if it reads, only when other machines can connect, or with `--private` |
//!
//! No answer carries CORS headers, so no other site can read an answer.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::api::Refusal;
use crate::token::Token;
use crate::{Options, Server};

/// Headers of every answer.
const HEADERS: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (
        HeaderName::from_static("permissions-policy"),
        "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    ),
];

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Paths of the page's own files: they are the same for everyone, and hold no figures.
const PAGE: [&str; 7] =
    ["/", "/page.css", "/page.js", "/map.js", "/timeline.js", "/stream.js", "/icon.svg"];

/// What a request must have.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) token: Token,
    /// Names besides `localhost` and this machine's addresses, in lower case.
    names: Vec<String>,
    reading: Reading,
    remote: bool,
}

/// Who may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Everybody on this machine.
    Local,
    /// Everybody with the token.
    WithToken,
}

impl Access {
    pub(crate) fn new(options: &Options, token: Token) -> Self {
        let lower = |name: &String| name.trim_end_matches('.').to_ascii_lowercase();
        let mut names: Vec<String> = options.allow_host.iter().map(lower).collect();
        let with_token = options.private || options.allow_remote || !names.is_empty();
        let reading = if with_token { Reading::WithToken } else { Reading::Local };
        if options.allow_remote {
            names.push(node_name().to_ascii_lowercase());
        }
        Self { token, names, reading, remote: options.allow_remote }
    }

    /// `address` as a browser can use it.
    pub(crate) fn shown_address(&self, address: SocketAddr) -> String {
        if address.ip().is_unspecified() {
            format!("{}:{}", node_name(), address.port())
        } else {
            address.to_string()
        }
    }

    /// Whether `host`, as in a `Host` header, is a name of this server. An address cannot be
    /// rebound, so every address is accepted where other machines may connect.
    fn knows(&self, host: &str) -> bool {
        let name = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name == "localhost"
            || address.is_ok_and(|address| address.is_loopback() || self.remote)
            || self.names.contains(&name)
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        given.and_then(|value| value.split_at_checked("Bearer ".len())).is_some_and(
            |(scheme, token)| scheme.eq_ignore_ascii_case(b"Bearer ") && self.token.is(token),
        )
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let headers = request.headers();
        let host = text(headers, &header::HOST).unwrap_or_default();
        let target = request.uri().authority().map(|authority| authority.as_str());
        if !self.knows(host) || target.is_some_and(|target| !self.knows(target)) {
            return Err(Refusal::new(
                StatusCode::MISDIRECTED_REQUEST,
                "host",
                "this server does not go by that name; `zerosweep serve --allow-host NAME` lets \
                 it",
            ));
        }
        let is_page = PAGE.contains(&request.uri().path());
        if !is_page || *request.method() != Method::GET {
            check_site(headers, host)?;
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let needs_token = match (reads, self.reading) {
            (true, Reading::Local) => false,
            (true, Reading::WithToken) => !is_page,
            (false, _) => true,
        };
        if needs_token && !self.has_token(headers) {
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "token",
                "the token that `zerosweep serve` printed is needed (Authorization: Bearer TOKEN)",
            ));
        }
        Ok(())
    }
}

/// Refuses requests that a browser sends for a page of another site.
fn check_site(headers: &HeaderMap, host: &str) -> Result<(), Refusal> {
    let site = text(headers, &SEC_FETCH_SITE);
    let is_link = site == Some("none") && text(headers, &SEC_FETCH_MODE) != Some("no-cors");
    let own_site = site.is_none_or(|site| site == "same-origin") || is_link;
    // Origin has a scheme, which a proxy may have changed: only name and port count.
    let own_origin = headers.get(header::ORIGIN).is_none_or(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.is_some_and(|(_, from)| from.eq_ignore_ascii_case(host))
    });
    if own_site && own_origin {
        Ok(())
    } else {
        Err(Refusal::new(StatusCode::FORBIDDEN, "site", "not for pages of another site"))
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `localhost` of `localhost:7300`, `[::1]` of `[::1]:7300`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// What this machine calls itself.
fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Refuses requests without access, and puts the headers on every answer.
pub(crate) async fn guard(State(server): State<Server>, request: Request, next: Next) -> Response {
    let mut response = match server.access.check(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn access(allow_remote: bool, allow_host: &[&str]) -> Access {
        let options = Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 7300)),
            allow_remote,
            allow_host: allow_host.iter().map(|&name| name.to_owned()).collect(),
            private: false,
            token_file: None,
            json: false,
        };
        Access::new(&options, Token::make().unwrap())
    }

    fn private() -> Access {
        Access { reading: Reading::WithToken, ..access(false, &[]) }
    }

    fn status(access: &Access, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        access.check(&request).map_or_else(|refusal| refusal.status().as_u16(), |()| 200)
    }

    #[test]
    fn only_names_of_this_server_are_answered() {
        let local = access(false, &[]);
        for host in ["localhost", "LOCALHOST:7300", "127.0.0.1:7300", "127.1.2.3", "[::1]:80"] {
            assert_eq!(status(&local, "GET", "/api/guests", &[("host", host)]), 200, "{host}");
        }
        for host in ["", "evil.example", "127.0.0.1.evil.example:7300", "10.0.0.1", "localhost.x"] {
            assert_eq!(status(&local, "GET", "/", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status(&local, "GET", "/", &[]), 421, "no Host at all");
        let absolute = "http://evil.example/api/guests";
        assert_eq!(status(&local, "GET", absolute, &[("host", "localhost")]), 421);
        let proxied = access(false, &["vms.example"]);
        assert_eq!(status(&proxied, "GET", "/", &[("host", "VMs.example")]), 200);
        assert_eq!(status(&proxied, "GET", "/api/guests", &[("host", "vms.example")]), 401);
        let remote = access(true, &[]);
        assert_eq!(status(&remote, "GET", "/", &[("host", "10.0.0.1:7300")]), 200);
        assert_eq!(status(&remote, "GET", "/", &[("host", &node_name())]), 200);
        assert_eq!(status(&remote, "GET", "/", &[("host", "evil.example")]), 421);
    }

    #[test]
    fn changes_need_the_token_and_reading_does_when_others_can_connect() {
        let (local, remote) = (access(false, &[]), access(true, &[]));
        let host = ("host", "127.0.0.1:7300");
        for (access, read) in [(&local, 200), (&remote, 401), (&private(), 401)] {
            let bearer = format!("Bearer {}", access.token.shown());
            let wrong = bearer.replace(|c: char| c.is_ascii_digit(), "x");
            let with = ("authorization", bearer.as_str());
            for path in ["/metrics", "/api/guests", "/api/events"] {
                assert_eq!(status(access, "GET", path, &[host]), read, "{path}");
                assert_eq!(status(access, "GET", path, &[host, with]), 200, "{path}");
            }
            assert_eq!(status(access, "GET", "/page.js", &[host]), 200);
            let path = "/api/guests/vm/sweep";
            assert_eq!(status(access, "POST", path, &[host, with]), 200);
            assert_eq!(status(access, "POST", path, &[host]), 401);
            assert_eq!(status(access, "POST", "/", &[host]), 401);
            for value in [&wrong, "Bearer ", "Basic x", access.token.shown()] {
                let headers = [host, ("authorization", value)];
                assert_eq!(status(access, "POST", path, &headers), 401, "{value}");
            }
            let in_query = format!("{path}?token={}", access.token.shown());
            assert_eq!(status(access, "POST", &in_query, &[host]), 401);
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused_even_with_the_token() {
        let access = access(false, &[]);
        let bearer = format!("Bearer {}", access.token.shown());
        let base = [("host", "localhost:7300"), ("authorization", bearer.as_str())];
        let with = |method, path, more: &[(&str, &str)]| {
            status(&access, method, path, &[base.as_slice(), more].concat())
        };
        let sweep = "/api/guests/vm/sweep";
        for (name, value, expect) in [
            ("origin", "http://localhost:7300", 200),
            ("origin", "https://localhost:7300", 200),
            ("origin", "http://localhost:8000", 403),
            ("origin", "http://evil.example", 403),
            ("origin", "null", 403),
            ("sec-fetch-site", "same-origin", 200),
            ("sec-fetch-site", "none", 200),
            ("sec-fetch-site", "same-site", 403),
            ("sec-fetch-site", "cross-site", 403),
        ] {
            assert_eq!(with("POST", sweep, &[(name, value)]), expect, "{name}: {value}");
            assert_eq!(with("GET", "/api/events", &[(name, value)]), expect, "{name}: {value}");
        }
        assert_eq!(with("GET", "/", &[("sec-fetch-site", "cross-site")]), 200, "a link");
    }

    #[test]
    fn ports_and_brackets() {
        assert_eq!(without_port("[::1]:7300"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
        assert_eq!(without_port("localhost"), "localhost");
    }
}
