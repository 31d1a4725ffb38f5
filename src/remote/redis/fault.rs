//! What the errors of a Redis mean, by the word that each begins with, and what to do about them.
//!
//! This module sees no credential: a server's words name none.

use std::io;

use crate::remote::{RemoteError, trust};

/// Characters of a server's words that are passed on.
const SHOWN: usize = 200;

/// The error that a server's words stand for.
pub(super) fn error(text: &str) -> RemoteError {
    let shown: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(SHOWN)
        .collect();
    let with = |advice: &str| format!("{shown}; {advice}");
    match text.split(' ').next().unwrap_or_default() {
        "OOM" => RemoteError::Full(with("raise its maxmemory, or let it evict (maxmemory-policy allkeys-lru)")),
        "NOAUTH" => RemoteError::Refused(with(
            "it wants a password: name the file that holds it with -o basic_file=FILE",
        )),
        "WRONGPASS" => RemoteError::Refused(with("see -o basic_file=FILE and the user in the URL")),
        "NOPERM" => RemoteError::Refused(with(
            "the user needs rights on the keys and commands (see cachedirfs(1)); -o ro if it is meant to be read only",
        )),
        "DENIED" => RemoteError::Refused("its protected mode admits nobody from elsewhere: give it a password".to_owned()),
        "READONLY" => RemoteError::Refused(with("name the server that is written to, or mount with -o ro")),
        "MOVED" | "ASK" | "CROSSSLOT" => RemoteError::Misconfigured(
            "it is a node of a cluster, which is not served: name a single server, or a proxy before the cluster".to_owned(),
        ),
        "WRONGTYPE" => RemoteError::Corrupt("it is no string: somebody else uses this key".to_owned()),
        "ERR" => plain(text, &shown),
        // LOADING, BUSY, MASTERDOWN, CLUSTERDOWN, TRYAGAIN, MISCONF, NOREPLICAS and whatever there may be one day.
        _ => RemoteError::Transient(shown),
    }
}

/// The errors that have no word of their own.
fn plain(text: &str, shown: &str) -> RemoteError {
    let says = |words: &str| text.contains(words);
    let with = |advice: &str| format!("{shown}; {advice}");
    if says("invalid bulk length") || says("exceeds maximum allowed size") {
        return RemoteError::Full(with(
            "it takes no objects of this size (proto-max-bulk-len)",
        ));
    }
    if says("DB index is out of range") || says("invalid DB index") {
        return RemoteError::Misconfigured(with(
            "it has fewer databases: another number in the URL",
        ));
    }
    if says("without any password configured") || says("no password is set") {
        return RemoteError::Misconfigured(with("leave out basic_file= or netrc_file="));
    }
    if says("unknown command") {
        return RemoteError::Unsupported(shown.to_owned());
    }
    RemoteError::Transient(shown.to_owned())
}

/// The error that a failing connection stands for.
pub(super) fn broken(error: io::Error) -> RemoteError {
    if let Some(why) = trust::distrusted(&error) {
        return RemoteError::Untrusted(why);
    }
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            RemoteError::Transient("timed out: no byte went either way".to_owned())
        }
        io::ErrorKind::UnexpectedEof => {
            RemoteError::Transient("the server closed the connection".to_owned())
        }
        _ => match RemoteError::from_io(error) {
            // A network has no disk that could be full, and no file that could be forbidden.
            RemoteError::Full(text) | RemoteError::Refused(text) => RemoteError::Transient(text),
            error => error,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_what_can_be_done() {
        let full = |text| matches!(error(text), RemoteError::Full(_));
        let refused = |text| matches!(error(text), RemoteError::Refused(_));
        let wrong = |text| matches!(error(text), RemoteError::Misconfigured(_));
        assert!(full(
            "OOM command not allowed when used memory > 'maxmemory'."
        ));
        assert!(full("ERR Protocol error: invalid bulk length"));
        for text in [
            "NOAUTH Authentication required.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "NOPERM this user has no permissions to run the 'set' command",
            "READONLY You can't write against a read only replica.",
            "DENIED Redis is running in protected mode because",
        ] {
            assert!(refused(text), "{text}");
        }
        for text in [
            "MOVED 3999 127.0.0.1:6381",
            "CROSSSLOT Keys in request don't hash to the same slot",
            "ERR DB index is out of range",
        ] {
            assert!(wrong(text), "{text}");
        }
        for text in [
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script.",
            "MASTERDOWN Link with MASTER is down",
            "CLUSTERDOWN The cluster is down",
            "ERR max number of clients reached",
            "",
        ] {
            assert!(error(text).is_transient(), "{text}");
        }
    }

    #[test]
    fn a_server_cannot_make_an_error_long_or_send_control_characters() {
        let said = error(&format!("ERR \x1b[31m{}", "x".repeat(9999))).to_string();
        assert!(said.len() < 300 && !said.contains('\x1b'), "{said}");
    }
}
