//! Names and places that follow from the remote and the user: the URL as it may be shown, the default backing
//! directory, the directory of the control sockets.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{ConfigError, Host};
use crate::remote;

/// Where root's caches go.
const ROOT_CACHES: &str = "/var/cache/cachedirfs";
/// Where root's control sockets go.
pub const ROOT_RUN_DIR: &str = "/run/cachedirfs";
/// Longest readable part of a slug.
const SLUG_CHARS: usize = 40;
/// Hex digits of the hash in a slug: enough to tell the mounts of one machine apart.
const SLUG_DIGITS: usize = 12;

/// What the name of a file begins with that systemd hands to a service.
const CREDENTIAL: &str = "credential:";

/// The file that the option `name` names: relative to where the command was typed, or as `credential:NAME` one that systemd
/// hands to this service alone.
pub(super) fn file(
    name: &str,
    typed: Option<PathBuf>,
    host: &Host,
) -> Result<Option<PathBuf>, ConfigError> {
    let Some(typed) = typed else { return Ok(None) };
    let Some(credential) = typed.to_str().and_then(|t| t.strip_prefix(CREDENTIAL)) else {
        return Ok(Some(host.cwd.join(typed)));
    };
    let wrong = |why: &str| ConfigError::Value {
        name: name.to_owned(),
        why: why.to_owned(),
    };
    if ["", ".", ".."].contains(&credential) || credential.contains('/') {
        return Err(wrong(
            "behind credential: stands the NAME of a LoadCredential=NAME:FILE",
        ));
    }
    let dir = host.credentials.as_ref().ok_or_else(|| {
        wrong("credential:NAME is for services of systemd that have LoadCredential=; name a file here")
    })?;
    Ok(Some(dir.join(credential)))
}

/// The URL of a remote. It shows itself without credentials and without its query.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteUrl {
    given: String,
    shown: String,
}

impl RemoteUrl {
    /// Takes what was typed. Only that it holds no password is checked here; whether it is a remote at all is known
    /// when it is opened.
    pub(super) fn new(typed: &str) -> Result<Self, ConfigError> {
        let url = Self::of(typed);
        let refuse = |why: &str| {
            Err(ConfigError::Remote {
                remote: url.to_string(),
                why: why.to_owned(),
            })
        };
        if typed.trim().is_empty() {
            return refuse("is empty; expected a URL such as https://host/cache or file:///dir");
        }
        if typed.chars().any(char::is_control) {
            return refuse("holds control characters; write them as %XX");
        }
        if split(typed).1.is_some_and(|user| user.contains(':')) {
            return refuse(
                "holds a password, which everybody could read in the process list; \
                 put user:password into a file of mode 0600 and name it with -o basic_file=FILE (or netrc_file=FILE)",
            );
        }
        Ok(url)
    }

    fn of(typed: &str) -> Self {
        Self {
            given: typed.to_owned(),
            shown: Self::shown_of(typed),
        }
    }

    /// All remotes of a mount, of which `shown` may be shown.
    pub(super) fn all(given: String, shown: String) -> Self {
        Self { given, shown }
    }

    /// What may be shown of a URL.
    pub(super) fn shown_of(url: &str) -> String {
        let (scheme, _, after) = split(url);
        let shown = after.find(['?', '#']).map_or(after, |end| &after[..end]);
        let authority = shown.split('/').next().unwrap_or_default();
        // What looks like a port and is none may be half of a password with a `|` or a space in it.
        let odd = port_is_odd(authority) || scheme.is_empty() && shown.contains(':');
        if odd && scheme != "file://" {
            return format!("{scheme}...");
        }
        format!("{scheme}{shown}")
    }

    /// As it was typed.
    pub fn as_given(&self) -> &str {
        &self.given
    }

    /// The directory of a `file:` remote, to see whether it is in the way of the mount.
    pub fn local_dir(&self) -> Option<PathBuf> {
        remote::directory(&self.given)
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The length of `scheme://` at the beginning of a URL; zero if that is none.
pub(super) fn scheme_len(url: &str) -> usize {
    let of_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    match url.split_once("://") {
        Some((scheme, _)) if !scheme.is_empty() && scheme.bytes().all(of_scheme) => {
            scheme.len() + 3
        }
        _ => 0,
    }
}

/// Splits a URL, or anything that was meant to be one, into `scheme://`, what stands before the `@` of the
/// authority, and the rest. Where it is not clear how far credentials go, more is taken for credentials.
fn split(url: &str) -> (&str, Option<&str>, &str) {
    let (scheme, rest) = url.split_at(scheme_len(url));
    let start = scheme.len();
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = &rest[..authority_end];
    let lacks_authority = authority.is_empty() && !scheme.eq_ignore_ascii_case("file://");
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let end = if port_is_odd(host) || start == 0 || lacks_authority {
        // `https://user:pass/word@host`, or no scheme at all, or `https:///user:pass@host`, which is read as if
        // there were two slashes.
        rest.rfind('@')
    } else {
        authority.rfind('@')
    };
    match end {
        Some(at) => (scheme, Some(&rest[..at]), &rest[at + 1..]),
        None => (scheme, None, rest),
    }
}

/// Whether what stands behind the host, a name or an address in brackets, is anything but a port.
fn port_is_odd(authority: &str) -> bool {
    let bracketed = authority.strip_prefix('[').and_then(|a| a.split_once(']'));
    let port = match bracketed {
        Some((_, behind)) => behind.strip_prefix(':').unwrap_or(behind),
        None => authority.split_once(':').map_or("", |(_, port)| port),
    };
    port.bytes().any(|b| !b.is_ascii_digit())
}

/// Whether what stands for the port is none, and nothing marks it as a credential.
pub(super) fn has_odd_port(url: &str) -> bool {
    let (scheme, credentials, rest) = split(url);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    !scheme.is_empty() && credentials.is_none() && port_is_odd(authority)
}

/// Where the cache goes when `backing` is not given. One remote at two mountpoints has two.
pub(super) fn default_backing(
    remote: &RemoteUrl,
    mountpoint: &Path,
    host: &Host,
) -> Result<PathBuf, ConfigError> {
    let caches = if host.uid == 0 {
        PathBuf::from(ROOT_CACHES)
    } else {
        let xdg = host.cache_home.clone().filter(|dir| dir.is_absolute());
        let home = host.home.as_ref().filter(|dir| dir.is_absolute());
        let base = xdg.or_else(|| home.map(|h| h.join(".cache")));
        base.ok_or(ConfigError::NoBacking)?.join("cachedirfs")
    };
    Ok(caches.join(slug(remote, mountpoint)))
}

/// Where this user's control sockets go.
pub fn run_dir(host: &Host) -> PathBuf {
    if host.uid == 0 {
        return PathBuf::from(ROOT_RUN_DIR);
    }
    match host.runtime_dir.as_ref().filter(|dir| dir.is_absolute()) {
        Some(dir) => dir.join("cachedirfs"),
        None => PathBuf::from(format!("/tmp/cachedirfs-{}", host.uid)),
    }
}

/// A file name that people recognise and that no other mount has.
fn slug(remote: &RemoteUrl, mountpoint: &Path) -> String {
    let shown = remote.to_string();
    let place = shown
        .split_once("://")
        .map_or(shown.as_str(), |(_, place)| place);
    let mut readable = String::new();
    for c in place.chars().take(SLUG_CHARS) {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '.') if !(c == '.' && readable.is_empty()) => {
                readable.push(c);
            }
            _ if readable.is_empty() || readable.ends_with('-') => {}
            _ => readable.push('-'),
        }
    }
    let mut hash = blake3::Hasher::new();
    hash.update(shown.as_bytes()).update(b"\0");
    hash.update(mountpoint.as_os_str().as_encoded_bytes());
    let digits = &hash.finalize().to_hex()[..SLUG_DIGITS];
    format!("{}-{digits}", readable.trim_end_matches('-'))
        .trim_start_matches('-')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        RemoteUrl::of(url).to_string()
    }

    #[test]
    fn credentials_are_never_shown_not_even_of_a_nonsense_url() {
        assert_eq!(
            shown("https://user:pw@host:8080/p?sig=pw#pw"),
            "https://host:8080/p"
        );
        assert_eq!(shown("https://pw@host/p"), "https://host/p");
        assert_eq!(shown("https://us:pw/x@host/p"), "https://host/p");
        assert_eq!(shown("https:///us:pw@host/p"), "https://host/p");
        assert_eq!(shown("https://[us:pw/@host/p"), "https://host/p");
        assert_eq!(shown("https://us@:pw/x@host/p"), "https://host/p");
        assert_eq!(shown("https://us:pw:?@host/p"), "https://host/p");
        assert_eq!(shown("us:pw@host/p"), "host/p");
        assert_eq!(shown("https://a@b:pw@host/p"), "https://host/p");
        assert_eq!(shown("https://host/@scope/p"), "https://host/@scope/p");
        assert_eq!(shown("https://[::1]:8080/a@b"), "https://[::1]:8080/a@b");
        assert_eq!(shown("file:///home/me@work"), "file:///home/me@work");
    }

    #[test]
    fn a_password_in_the_url_is_refused_without_repeating_it() {
        for url in [
            "https://user:pw@host/p",
            "user:pw@host",
            "https://us:pw/x@host/p",
            "https:///us:pw@host/p",
        ] {
            let said = RemoteUrl::new(url).unwrap_err().to_string();
            assert!(
                said.contains("basic_file") && !said.contains("pw"),
                "{said}"
            );
        }
        for url in [
            "https://host/p",
            "https://user@host/p",
            "file:///a:b@c",
            "http://[::1]:80/x",
        ] {
            assert!(RemoteUrl::new(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn the_directory_of_a_file_remote_is_the_one_that_is_opened() {
        let dir = |url: &str| RemoteUrl::of(url).local_dir();
        assert_eq!(dir("file:///a%20b/c"), Some("/a b/c".into()));
        assert_eq!(dir("file:///a/../b"), Some("/b".into()));
        assert_eq!(dir("file://localhost/a"), Some("/a".into()));
        assert_eq!(dir("https://host/a"), None);
        assert_eq!(dir("nonsense"), None);
    }

    #[test]
    fn two_mounts_of_one_remote_have_two_slugs() {
        let remote = RemoteUrl::of("https://Cache.Example/ci/../x");
        let (one, two) = (
            slug(&remote, Path::new("/a")),
            slug(&remote, Path::new("/b")),
        );
        assert_ne!(one, two);
        assert!(one.starts_with("cache.example-ci-..-x-"), "{one}");
        let odd = slug(&RemoteUrl::of("file:///../.."), Path::new("/a"));
        assert!(!odd.contains('/') && !odd.starts_with('.'), "{odd}");
    }
}
