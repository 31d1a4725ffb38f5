//! What the status of an answer means.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

use crate::remote::RemoteError;

/// There is no such object.
pub(in crate::remote) fn is_miss(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// A PUT or MKCOL below a collection that is not there: 409 by the book, 404 from some.
pub(in crate::remote) fn lacks_parent(status: StatusCode) -> bool {
    matches!(status, StatusCode::CONFLICT | StatusCode::NOT_FOUND)
}

/// MKCOL of what is there already (405), or is being made (409, 423).
pub(in crate::remote) fn may_exist(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::CONFLICT | StatusCode::LOCKED
    )
}

/// The server wants other credentials.
pub(in crate::remote) fn is_refused(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED
    )
}

/// The error that an answer stands for. `subject` is method and URL.
pub(in crate::remote) fn error(
    subject: &str,
    status: StatusCode,
    headers: &HeaderMap,
) -> RemoteError {
    let with = |hint: &str| format!("{subject}: {status}{hint}");
    match status {
        StatusCode::UNAUTHORIZED => RemoteError::Refused(with("; are the credentials right?")),
        StatusCode::FORBIDDEN => RemoteError::Refused(with("; may we do this?")),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            RemoteError::Refused(with("; the proxy wants credentials"))
        }
        StatusCode::PAYLOAD_TOO_LARGE => RemoteError::Full(with(
            "; the server's limit is lower (nginx: client_max_body_size 0)",
        )),
        StatusCode::INSUFFICIENT_STORAGE => RemoteError::Full(with("")),
        StatusCode::METHOD_NOT_ALLOWED => RemoteError::Misconfigured(with(
            "; the server does not take it (nginx: dav_methods PUT DELETE MKCOL)",
        )),
        StatusCode::NOT_IMPLEMENTED => RemoteError::Unsupported(with("")),
        // Locked: WebDAV's word for an upload of the same object by somebody else.
        StatusCode::LOCKED
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::MISDIRECTED_REQUEST
        | StatusCode::TOO_EARLY => RemoteError::Transient(with("")),
        _ if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
            match retry_after(headers) {
                Some(wait) => RemoteError::Busy(with(""), wait),
                None => RemoteError::Transient(with("")),
            }
        }
        _ if status.is_redirection() => {
            RemoteError::Misconfigured(with("; name the URL it leads to"))
        }
        _ => RemoteError::Misconfigured(with("")),
    }
}

/// In seconds, or as a date, which is compared with the date of the answer itself: our clock and the server's need
/// not agree. A date without that, or that is over, says nothing.
pub(in crate::remote) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| Some(headers.get(name)?.to_str().ok()?.trim());
    let asked = text(RETRY_AFTER)?;
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text| httpdate::parse_http_date(text).ok();
    let wait = date(asked)?.duration_since(date(text(DATE)?)?);
    wait.ok().filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn of(status: u16, after: Option<&'static str>) -> RemoteError {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
        }
        error(
            "PUT http://h/x",
            StatusCode::from_u16(status).unwrap(),
            &headers,
        )
    }

    #[test]
    fn each_status_is_classified() {
        for status in [401, 403, 407] {
            assert!(
                matches!(of(status, None), RemoteError::Refused(_)),
                "{status}"
            );
        }
        for status in [413, 507] {
            assert!(matches!(of(status, None), RemoteError::Full(_)), "{status}");
        }
        for status in [408, 423, 429, 500, 502, 503, 504] {
            assert!(
                matches!(of(status, None), RemoteError::Transient(_)),
                "{status}"
            );
        }
        for status in [301, 400, 405, 411, 418] {
            assert!(
                matches!(of(status, None), RemoteError::Misconfigured(_)),
                "{status}"
            );
        }
    }

    #[test]
    fn every_status_with_any_retry_after_is_an_error_that_names_it() {
        for status in 100..1000 {
            for after in [
                None,
                Some(""),
                Some("-1"),
                Some("99999999999999999999"),
                Some("0"),
            ] {
                let error = of(status, after);
                assert!(error.to_string().contains(&status.to_string()), "{error}");
                assert!(
                    error.retry_after().is_none_or(|wait| wait.is_zero()),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_server_may_say_in_seconds_when_to_come_back() {
        assert_eq!(
            of(503, Some("7")).retry_after(),
            Some(Duration::from_secs(7))
        );
        assert_eq!(of(503, Some("soon")).retry_after(), None);
    }

    #[test]
    fn a_date_to_come_back_is_by_the_clock_of_the_server() {
        let wait = |after: &'static str, date: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
            if let Some(date) = date {
                headers.insert(DATE, HeaderValue::from_static(date));
            }
            error("GET http://h/x", StatusCode::TOO_MANY_REQUESTS, &headers).retry_after()
        };
        let (sent, later) = (
            "Wed, 21 Oct 2015 07:28:00 GMT",
            "Wed, 21 Oct 2015 07:30:00 GMT",
        );
        assert_eq!(wait(later, Some(sent)), Some(Duration::from_secs(120)));
        assert_eq!(wait(sent, Some(later)), None);
        assert_eq!(wait(later, None), None);
    }
}
