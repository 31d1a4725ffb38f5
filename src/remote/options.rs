//! What can be said about a remote besides its URL, and the URL itself, parsed at the door.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::clock::{Clock, SystemClock};
use crate::object::{EncodeOptions, Format, Key};
use crate::remote::RemoteError;
use crate::signature::Signature;

/// Digits of the directory that an object is filed under, whatever the mount's own prefix length is:
/// mounts with another one share the remote.
const PREFIX_LEN: usize = 2;

/// Above 19, levels of zstd need windows that readers do not allow.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// The default of [`RemoteOptions::min_speed`]: 16 KiB/s. A usual object (some 10 KiB) then still comes within a
/// second, and the poorest line that anybody builds over carries several times as much.
pub const MIN_SPEED: u64 = 16 << 10;

/// How keys are made of signatures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// `XX/SIG`: as a CacheDir on disk.
    #[default]
    Upper,
    /// `xx/SIG`: as the class of SCons issue 4394 does.
    Lower,
    /// `SIG`.
    Flat,
}

impl Layout {
    /// The key of `sig`.
    pub fn key(self, sig: &Signature) -> String {
        let prefix = sig.prefix(PREFIX_LEN);
        match self {
            Self::Upper => format!("{prefix}/{sig}"),
            Self::Lower => format!("{}/{sig}", prefix.to_ascii_lowercase()),
            Self::Flat => sig.to_string(),
        }
    }

    /// The signature whose key this is; `None` for anything that lies around in the store.
    pub fn parse(self, key: &str) -> Option<Signature> {
        let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
        let sig = Signature::parse(name.as_bytes())?;
        (self.key(&sig) == key).then_some(sig)
    }
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "upper" => Ok(Self::Upper),
            "lower" => Ok(Self::Lower),
            "flat" => Ok(Self::Flat),
            _ => Err(format!(
                "unknown layout {text:?}: known are upper, lower, flat"
            )),
        }
    }
}

/// A credential. It never shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the credential in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The credential itself, for the request's header alone.
    #[cfg_attr(
        not(any(feature = "http", feature = "grpc", feature = "redis")),
        allow(dead_code)
    )]
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

/// Variables of the environment that stores of objects take credentials and regions from: those of the command
/// that was typed. The values never show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// What the names of such variables begin with; `HOME` is one more.
    pub const PREFIXES: [&str; 6] = [
        "AWS_",
        "AZURE_",
        "GOOGLE_",
        "GCE_",
        "IDENTITY_",
        "STORAGE_EMULATOR_HOST",
    ];

    /// Takes out of `variables` what concerns remotes.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let concerns = |name: &str| {
            name == "HOME" || Self::PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        };
        Self(
            variables
                .into_iter()
                .filter(|(name, value)| concerns(name) && !value.is_empty())
                .collect(),
        )
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them, for a library that looks them up itself.
    pub fn all(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What can be said about a remote besides its URL. TLS verification cannot be switched off: name the
/// certificate authority instead.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// How keys are made of signatures.
    pub layout: Layout,
    /// How objects are written.
    pub format: Format,
    /// Level of zstd, 1 to 19.
    pub level: i32,
    /// Objects are authenticated with this, and only such are believed.
    pub key: Option<Key>,
    /// Where big payloads wait while they are uploaded, as files without a name.
    pub spool_dir: PathBuf,
    /// Permission bits that what is made in a directory does not get, beyond the umask of the process.
    pub umask: u32,
    /// Longest wait for name, connection and TLS together. The default is below one second, after
    /// which Linux sends the first packet again: a new attempt does the same, and three failures,
    /// which open the breaker, fit into the three seconds that a dead remote may cost.
    pub connect_timeout: Duration,
    /// Longest wait without a byte sent or received.
    pub stall_timeout: Duration,
    /// Longest time for one request with its body.
    pub request_timeout: Duration,
    /// Bytes a second, as they are stored, below which a transfer counts as failed; 0 for no limit. What is
    /// slower than a modem ([`MIN_SPEED`]) is no help to any build, and usually somebody's overload.
    pub min_speed: u64,
    /// What transfers are timed with.
    pub clock: Arc<dyn Clock>,
    /// Credentials by host, as curl and git read them.
    pub netrc_file: Option<PathBuf>,
    /// A file that holds `user:password`.
    pub basic_file: Option<PathBuf>,
    /// A file that holds a bearer token.
    pub bearer_file: Option<PathBuf>,
    /// A bearer token from the environment (CACHEDIRFS_BEARER_TOKEN): used when nothing else is said.
    pub bearer: Option<Secret>,
    /// Certificate authorities (PEM) that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// A certificate chain (PEM) that this machine shows the server …
    pub client_cert_file: Option<PathBuf>,
    /// … and its key.
    pub client_key_file: Option<PathBuf>,
    /// Headers (`Name: value` a line) that go with every call of a gRPC remote.
    pub headers_file: Option<PathBuf>,
    /// Whether an action cache is also asked for what SCons with pull request 3971 wrote.
    pub pr3971: bool,
    /// What the environment says about credentials.
    pub environment: Environment,
    /// How long an object lives from its upload or last touch, where the remote can have it expire; for ever if not said.
    pub ttl: Option<Duration>,
    /// What the keys in a Redis begin with.
    pub redis_prefix: String,
    /// Where an object store is, if not where its cloud has it.
    pub endpoint: Option<String>,
    /// The region of a bucket.
    pub region: Option<String>,
    /// A profile in the files of the AWS tools.
    pub profile: Option<String>,
    /// The storage account of an Azure container.
    pub account: Option<String>,
    /// Ask an object store without credentials.
    pub anonymous: Option<bool>,
    /// Whether the metadata service of a virtual machine may be asked for credentials.
    pub imds: Option<bool>,
    /// Whether the bucket stands in the path of an S3 URL rather than in its host.
    pub path_style: Option<bool>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            layout: Layout::default(),
            format: Format::default(),
            level: 3,
            key: None,
            spool_dir: PathBuf::from("/var/tmp"),
            umask: 0,
            connect_timeout: Duration::from_millis(800),
            stall_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(600),
            min_speed: MIN_SPEED,
            clock: SystemClock::shared(),
            netrc_file: None,
            basic_file: None,
            bearer_file: None,
            bearer: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            headers_file: None,
            pr3971: false,
            environment: Environment::default(),
            ttl: None,
            redis_prefix: "cachedirfs:".to_owned(),
            endpoint: None,
            region: None,
            profile: None,
            account: None,
            anonymous: None,
            imds: None,
            path_style: None,
        }
    }
}

impl RemoteOptions {
    /// Refuses what makes no sense, before anything is opened.
    pub(super) fn check(&self) -> Result<(), RemoteError> {
        let wrong = |text: String| Err(RemoteError::Misconfigured(text));
        if !LEVELS.contains(&self.level) {
            return wrong(format!("compression level {}: want 1 to 19", self.level));
        }
        if self.key.is_some() && self.format == Format::Raw {
            return wrong(
                "a key needs format=object: raw objects cannot be authenticated".to_owned(),
            );
        }
        if self.basic_file.is_some() && self.bearer_file.is_some() {
            return wrong(
                "credentials: give one of basic_file and bearer_file, not both".to_owned(),
            );
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return wrong(
                "a client's certificate: give both client_cert_file and client_key_file".to_owned(),
            );
        }
        Ok(())
    }

    /// The part of them that concerns objects.
    pub(super) fn encode_options(&self) -> EncodeOptions {
        EncodeOptions {
            level: self.level,
            key: self.key.clone(),
            spool_dir: self.spool_dir.clone(),
        }
    }
}

/// The URL that `text` spells. No error shows credentials.
pub(super) fn parse_url(text: &str) -> Result<Url, RemoteError> {
    let wrong =
        |why: &str| RemoteError::Misconfigured(format!("remote {:?}: {why}", redacted(text)));
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            return Err(wrong(&format!(
                "{error}; want a URL such as https://host/cache"
            )));
        }
    };
    // `file:x` and `http:x` parse, but to something that nobody meant.
    if !text[url.scheme().len()..].starts_with("://") {
        return Err(wrong(
            "want a URL such as file:///srv/cache or https://host/cache",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong(
            "a URL with ? or # cannot hold keys; write %3F or %23 if they belong to the path",
        ));
    }
    Ok(url)
}

/// The error for a scheme that nobody serves.
pub(super) fn unknown_scheme(text: &str, scheme: &str, known: &[(&str, bool)]) -> RemoteError {
    let url = redacted(text);
    if known.contains(&(scheme, false)) {
        return RemoteError::Misconfigured(format!(
            "remote {url:?}: this cachedirfs was built without {scheme}; build it with cargo's default features"
        ));
    }
    let here = known.iter().filter(|(_, built)| *built);
    let names: Vec<_> = here.map(|(name, _)| *name).collect();
    RemoteError::Misconfigured(format!(
        "remote {url:?}: unknown scheme {scheme:?}; known are {}",
        names.join(", ")
    ))
}

/// `text` without anything that could be a credential: whatever stands before the last `@` goes, and
/// whatever stands behind `?` or `#`.
fn redacted(text: &str) -> String {
    let end = text.find(['?', '#']).unwrap_or(text.len());
    // A password may hold a `?` itself: then nothing of the URL is shown.
    if text[end..].contains('@') {
        return "...".to_owned();
    }
    let text = &text[..end];
    let of_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) if scheme.bytes().all(of_scheme) => {
            format!("{scheme}://{rest}")
        }
        (_, Some((_, rest))) => rest.to_owned(),
        (_, None) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layout_finds_its_own_keys_again_and_no_others() {
        let sig = Signature::parse(b"ab3456789012345678901234567890cd").unwrap();
        let keys = [
            (Layout::Upper, "AB/ab3456789012345678901234567890cd"),
            (Layout::Lower, "ab/ab3456789012345678901234567890cd"),
            (Layout::Flat, "ab3456789012345678901234567890cd"),
        ];
        for (layout, key) in keys {
            assert_eq!(layout.key(&sig), key);
            for (other, _) in keys {
                assert_eq!(
                    other.parse(key).is_some(),
                    other == layout,
                    "{other:?} {key}"
                );
            }
        }
        for stray in [
            "config",
            "AB/config",
            "CD/ab3456789012345678901234567890cd",
            "",
            "/",
        ] {
            assert!(Layout::Upper.parse(stray).is_none(), "{stray}");
        }
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let file = || Some(PathBuf::from("f"));
        let base = RemoteOptions::default;
        assert!(base().check().is_ok());
        for bad in [
            RemoteOptions {
                level: 20,
                ..base()
            },
            RemoteOptions {
                key: Some(Key::new([0; 32])),
                format: Format::Raw,
                ..base()
            },
            RemoteOptions {
                bearer_file: file(),
                basic_file: file(),
                ..base()
            },
        ] {
            assert!(
                matches!(bad.check(), Err(RemoteError::Misconfigured(_))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = Key::parse(&"5e".repeat(32));
        let bearer = Some(Secret::new("t0ken"));
        let shown = format!(
            "{:?}",
            RemoteOptions {
                key,
                bearer,
                ..RemoteOptions::default()
            }
        );
        assert!(
            !shown.contains("t0ken") && !shown.contains("5e5e") && !shown.contains("94, 94"),
            "{shown}"
        );
    }

    #[test]
    fn redacting_keeps_nothing_that_could_be_a_password() {
        assert_eq!(redacted("http://u:p@h/x"), "http://h/x");
        assert_eq!(redacted("http://u:p@q@h/x"), "http://h/x");
        assert_eq!(redacted("u:p@h"), "h");
        assert_eq!(redacted("http://u:p?w@h/x"), "...");
        assert_eq!(redacted("http://h/x?token=t"), "http://h/x");
    }
}
