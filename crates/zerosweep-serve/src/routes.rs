//! The paths and what answers them.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};

use crate::api::Refusal;
use crate::{Server, access, api, events, metrics};

/// The description of the interface.
const OPENAPI: &str = include_str!("openapi.json");

/// The largest body of a request, in bytes.
const MOST_BODY_BYTES: usize = 4096;

/// All routes, guarded.
pub(crate) fn router(server: Server) -> Router {
    let mut router = Router::new();
    for (path, answers) in page().into_iter().chain(documented()) {
        router = router.route(path, answers);
    }
    router
        .fallback(nothing_there)
        .method_not_allowed_fallback(not_that_method)
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .layer(from_fn_with_state(server.clone(), access::guard))
        .with_state(server)
}

/// The page and its files.
fn page() -> Vec<(&'static str, MethodRouter<Server>)> {
    let script = |text| file("text/javascript; charset=utf-8", text);
    vec![
        ("/", file("text/html; charset=utf-8", include_str!("page/page.html"))),
        ("/page.css", file("text/css; charset=utf-8", include_str!("page/page.css"))),
        ("/icon.svg", file("image/svg+xml", include_str!("page/icon.svg"))),
        ("/page.js", script(include_str!("page/page.js"))),
        ("/map.js", script(include_str!("page/map.js"))),
        ("/timeline.js", script(include_str!("page/timeline.js"))),
        ("/stream.js", script(include_str!("page/stream.js"))),
    ]
}

/// What programs use; `openapi.json` has each of them.
fn documented() -> Vec<(&'static str, MethodRouter<Server>)> {
    vec![
        ("/metrics", get(metrics::metrics)),
        ("/api/openapi.json", file("application/json", OPENAPI)),
        ("/api/events", get(events::events)),
        ("/api/guests", get(api::guests)),
        ("/api/guests/{name}", get(api::guest)),
        ("/api/guests/{name}/map", get(api::superpages)),
        ("/api/guests/{name}/history", get(api::history)),
        ("/api/guests/{name}/target", post(api::target)),
        ("/api/guests/{name}/sweep", post(api::sweep)),
        ("/api/guests/{name}/consolidate", post(api::consolidate)),
        ("/api/guests/{name}/audit", post(api::recount)),
    ]
}

fn file(kind: &'static str, text: &'static str) -> MethodRouter<Server> {
    get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
}

async fn nothing_there() -> impl IntoResponse {
    Refusal::new(StatusCode::NOT_FOUND, "path", "nothing is there; see /api/openapi.json")
}

async fn not_that_method() -> impl IntoResponse {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", "see /api/openapi.json")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_description_has_every_path_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let described: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let routed: BTreeSet<&str> = documented().into_iter().map(|(path, _)| path).collect();
        assert_eq!(described, routed);
    }

    #[test]
    fn every_reference_in_the_description_leads_somewhere() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut references = Vec::new();
        collect_references(&document, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    fn collect_references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value) {
                        ("$ref", Value::String(reference)) => found.push(reference),
                        _ => collect_references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
            _ => {}
        }
    }
}
