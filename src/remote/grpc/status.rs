//! What the status of a call means.

use std::error::Error;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use crate::remote::grpc::message::{RetryInfo, RpcStatus};
use crate::remote::{RemoteError, trust};

/// Longest text of a server's that goes into an error. Some put the whole request in.
const TEXT_MAX: usize = 300;

/// What gRPC's own servers say when they have too many calls, which is over in a moment.
const TOO_MANY: &str = "Concurrent RPC limit exceeded";

/// Most details that are looked at.
const DETAILS_MAX: usize = 16;

/// What was being done when it failed: the same code means different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Asking,
    Reading,
    Writing,
}

/// There is no such entry, blob or write.
pub(super) fn is_miss(status: &Status) -> bool {
    status.code() == Code::NotFound
}

/// The connection or the server broke off, so that going on where it ended may work.
pub(super) fn is_cut(status: &Status) -> bool {
    let may_be = matches!(
        status.code(),
        Code::Unavailable
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
            | Code::Aborted
            | Code::DataLoss
    );
    may_be && trust::distrusted(status).is_none()
}

/// The server may have changed what it can do.
pub(super) fn is_surprise(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::Unimplemented
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::OutOfRange
    )
}

/// Nothing was heard for too long.
pub(super) fn stalled() -> Status {
    Status::deadline_exceeded("timed out: nothing went either way")
}

/// The status of one blob of a batch.
pub(super) fn of_blob(status: Option<RpcStatus>) -> Result<(), Status> {
    let status = status.unwrap_or_default();
    match Code::from_i32(status.code) {
        Code::Ok => Ok(()),
        code => {
            let details = RpcStatus {
                message: String::new(),
                ..status.clone()
            };
            Err(Status::with_details(
                code,
                status.message,
                details.encode_to_vec().into(),
            ))
        }
    }
}

/// The error that a status stands for.
pub(super) fn error(status: &Status, doing: Doing) -> RemoteError {
    if let Some(why) = trust::distrusted(status) {
        return RemoteError::Untrusted(why);
    }
    if let Some(why) = trust::wants_ours(status) {
        return RemoteError::Refused(why);
    }
    let with = |hint: &str| format!("{}{hint}", text(status));
    match status.code() {
        Code::Unauthenticated => RemoteError::Refused(with("; are the credentials right?")),
        Code::PermissionDenied => RemoteError::Refused(with("; may we do this?")),
        Code::ResourceExhausted => match (retry_delay(status), doing) {
            (Some(wait), _) => RemoteError::Busy(with(""), wait),
            (None, Doing::Writing) if !status.message().contains(TOO_MANY) => {
                RemoteError::Full(with(""))
            }
            (None, _) => RemoteError::Transient(with("")),
        },
        Code::Unavailable => match retry_delay(status) {
            Some(wait) => RemoteError::Busy(with(""), wait),
            None => RemoteError::Transient(with("")),
        },
        Code::DataLoss if doing == Doing::Reading => RemoteError::Corrupt(with("")),
        Code::InvalidArgument => {
            RemoteError::Misconfigured(with("; does the URL name the right instance?"))
        }
        Code::NotFound => {
            RemoteError::Misconfigured(with("; is there such an instance? The URL names it"))
        }
        Code::Unimplemented => RemoteError::Misconfigured(with(
            "; is it a cache that speaks the Remote Execution API v2?",
        )),
        // Of an update: its blob was evicted in between.
        Code::FailedPrecondition if doing == Doing::Writing => RemoteError::Transient(with("")),
        Code::FailedPrecondition | Code::OutOfRange => RemoteError::Misconfigured(with("")),
        _ => RemoteError::Transient(with("")),
    }
}

/// How long the server asks to be left alone.
fn retry_delay(status: &Status) -> Option<Duration> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let mut infos = details
        .iter()
        .take(DETAILS_MAX)
        .filter(|any| any.type_url.ends_with("/google.rpc.RetryInfo"));
    let delay = RetryInfo::decode(&infos.next()?.value[..])
        .ok()?
        .retry_delay?;
    let seconds = u64::try_from(delay.seconds).ok()?;
    let nanos = u32::try_from(delay.nanos)
        .ok()
        .filter(|n| *n < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos)).filter(|wait| !wait.is_zero())
}

/// How a server hangs up that got no certificate and does not say so.
const HUNG_UP: &str = "without sending TLS close_notify";

/// Code and message; of a transport that failed, the cause at the bottom.
fn text(status: &Status) -> String {
    let mut cause = status.source();
    let mut message = status.message().to_owned();
    while let Some(error) = cause {
        message = error.to_string();
        cause = error.source();
    }
    let clean = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    let clean: String = clean.take(TEXT_MAX).collect();
    if clean.contains(HUNG_UP) {
        return "connection: the server hung up during TLS; if it wants a certificate of ours, name that with \
                -o client_cert_file=FILE and client_key_file=FILE"
            .to_owned();
    }
    match (status.source(), clean.is_empty()) {
        (Some(_), false) => format!("connection: {clean}"),
        (_, false) => format!("{:?}: {clean}", status.code()),
        (_, true) => format!("{:?}", status.code()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::grpc::message::{Any, ProtoDuration};

    fn with_retry(code: Code, seconds: i64) -> Status {
        let info = RetryInfo {
            retry_delay: Some(ProtoDuration { seconds, nanos: 0 }),
        };
        let any = Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: info.encode_to_vec(),
        };
        let details = RpcStatus {
            details: vec![any],
            ..RpcStatus::default()
        };
        Status::with_details(code, "later", details.encode_to_vec().into())
    }

    #[test]
    fn each_code_is_classified() {
        let of = |code: Code, doing| error(&Status::new(code, "m"), doing);
        for code in [Code::Unauthenticated, Code::PermissionDenied] {
            assert!(matches!(of(code, Doing::Asking), RemoteError::Refused(_)));
        }
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::Internal,
            Code::Unknown,
            Code::Cancelled,
        ] {
            assert!(of(code, Doing::Reading).is_transient(), "{code:?}");
        }
        for code in [Code::InvalidArgument, Code::Unimplemented, Code::NotFound] {
            assert!(matches!(
                of(code, Doing::Writing),
                RemoteError::Misconfigured(_)
            ));
        }
        let full = of(Code::ResourceExhausted, Doing::Writing);
        assert!(matches!(full, RemoteError::Full(_)));
        assert!(of(Code::ResourceExhausted, Doing::Reading).is_transient());
        let crowd = Status::resource_exhausted("Concurrent RPC limit exceeded!");
        assert!(error(&crowd, Doing::Writing).is_transient());
        let lost = of(Code::DataLoss, Doing::Reading);
        assert!(matches!(lost, RemoteError::Corrupt(_)));
    }

    #[test]
    fn a_server_may_say_when_to_come_back() {
        for code in [Code::ResourceExhausted, Code::Unavailable] {
            let wait = |seconds| error(&with_retry(code, seconds), Doing::Writing).retry_after();
            assert_eq!(wait(7), Some(Duration::from_secs(7)));
            assert_eq!(wait(0), None);
            assert_eq!(wait(-7), None);
        }
    }

    #[test]
    fn a_status_of_a_blob_keeps_its_details() {
        assert!(of_blob(None).is_ok());
        let details = RpcStatus::decode(with_retry(Code::Ok, 7).details()).unwrap();
        let status = RpcStatus {
            code: Code::ResourceExhausted as i32,
            message: "later".to_owned(),
            ..details
        };
        let error = error(&of_blob(Some(status)).unwrap_err(), Doing::Writing);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_server_that_hangs_up_during_tls_may_want_a_certificate() {
        let hung_up = std::io::Error::other(format!("peer closed connection {HUNG_UP}"));
        let error = error(&Status::from_error(Box::new(hung_up)), Doing::Asking);
        assert!(error.is_transient(), "{error:?}");
        assert!(
            error.to_string().contains("client_cert_file=FILE"),
            "{error}"
        );
    }

    #[test]
    fn what_a_server_says_is_cut_and_cleaned() {
        let status = Status::internal(format!("a\n\x1b[31m{}", "x".repeat(10_000)));
        let said = error(&status, Doing::Asking).to_string();
        assert!(
            said.len() < TEXT_MAX + 40 && !said.contains(['\n', '\x1b']),
            "{said}"
        );
    }
}
