//! The table of `-o` options, and what each does. A switch is written `name`, `noname` or `name=on|off`.

use std::time::Duration;

use super::list::{name_of, split};
use super::origin::Origin;
use super::values::{
    Amount, address, amount, count, duration, mask, some_amount, some_duration, speed, switch,
    threads,
};
use super::{ConfigError, Draft, Push, foreign};

/// One option: what `--help` and the man page say of it, and what it does.
pub struct OptionSpec {
    /// Its name.
    pub name: &'static str,
    /// What stands after the `=`; `None` for a switch.
    pub value: Option<&'static str>,
    /// The default, for people.
    pub default: &'static str,
    /// One line for people.
    pub help: &'static str,
    /// The field that it sets.
    field: &'static str,
    set: fn(&mut Draft, &str) -> Result<(), String>,
}

impl OptionSpec {
    /// Whether it can be said of one remote alone.
    pub(super) fn is_of_one_remote(&self) -> bool {
        self.field.starts_with("remote.") || ["key_file.", "lookup_timeout."].contains(&self.field)
    }

    /// Whether its value is a path.
    pub(super) fn is_path(&self) -> bool {
        matches!(self.value, Some("FILE" | "DIR"))
    }
}

/// Least size of a file of events: a few hundred of them.
const LEAST_FILE: u64 = 64 * 1024;
/// Most files of events: each rotation renames all of them.
const MOST_FILES: u64 = 1000;

/// An option with a value.
macro_rules! valued {
    ($name:literal, $value:literal, $default:literal, $help:literal, $parse:expr => $($field:ident).+) => {
        OptionSpec {
            name: $name,
            value: Some($value),
            default: $default,
            help: $help,
            field: concat!($(stringify!($field), "."),+),
            set: |draft, text| {
                draft.$($field).+ = Some($parse(text)?);
                Ok(())
            },
        }
    };
}

/// An option with a value, of what the remote is opened with; its default stands there.
macro_rules! of_remote {
    ($name:literal, $value:literal, $default:literal, $help:literal, $parse:expr => $field:ident) => {
        OptionSpec {
            name: $name,
            value: Some($value),
            default: $default,
            help: $help,
            field: concat!("remote.", stringify!($field)),
            set: |draft, text| {
                draft.remote.$field = $parse(text)?;
                Ok(())
            },
        }
    };
}

/// An option that is on or off.
macro_rules! switched {
    ($name:literal, $default:literal, $help:literal, $($field:ident).+) => {
        OptionSpec {
            name: $name,
            value: None,
            default: $default,
            help: $help,
            field: concat!($(stringify!($field), "."),+),
            set: |draft, text| {
                draft.$($field).+ = Some(switch(text)?);
                Ok(())
            },
        }
    };
}

/// Every option of our own, in the order in which they are explained.
pub static OPTIONS: &[OptionSpec] = &[
    valued!("backing", "DIR", "/var/cache/cachedirfs/..., for users ~/.cache/cachedirfs/...",
        "directory that holds the entries; an existing CacheDir is taken over as it is", some_text => backing),
    valued!("size", "SIZE", "20G, at most half of the file system",
        "limit of the backing directory (K, M, G, T, or % of its file system)", some_amount => size),
    valued!("min_free", "SIZE", "1G, at most 5% of the file system",
        "space to leave free on the file system of the backing directory", amount => min_free),
    switched!(
        "ro",
        "off",
        "read-only: nothing can be pushed or changed but SCons' config.lock; to keep what is built here without uploading it, use push=off",
        ro
    ),
    valued!("push", "on|off|sync", "on",
        "upload in the background, not at all, or before the rename returns", push => push),
    valued!("negative_ttl", "TIME", "10s",
        "how long an absent entry stays absent without asking again", duration => negative_ttl),
    valued!("lookup_timeout", "TIME", "2s",
        "latest first byte of a lookup; what is later is a miss", some_duration => lookup_timeout),
    of_remote!("connect_timeout", "TIME", "800ms",
        "latest moment for a connection to stand", some_duration => connect_timeout),
    of_remote!("stall_timeout", "TIME", "5s",
        "longest silence in the middle of a transfer", some_duration => stall_timeout),
    of_remote!("request_timeout", "TIME", "10m",
        "longest time for one request with its body", some_duration => request_timeout),
    of_remote!("min_speed", "SIZE", "16K",
        "bytes a second below which a transfer counts as failed; 0 for any speed", speed => min_speed),
    valued!("drain_timeout", "TIME", "60s",
        "how long an unmount waits for uploads; the rest goes with the next mount", duration => drain_timeout),
    valued!("pending_max", "N", "100000",
        "most objects that may wait for their upload; above, the oldest are given up", count => pending_max),
    valued!("pending_size", "SIZE", "75% of the option size",
        "most bytes on disk that may wait for their upload; above, the oldest are given up", some_amount => pending_size),
    valued!("fetch_threads", "N", "16", "fetches at one time", threads => fetch_threads),
    valued!("upload_threads", "N", "8", "uploads at one time", threads => upload_threads),
    valued!("event_threads", "N", "twice the processors, 4 to 16", "event loops, at least 2", threads => event_threads),
    of_remote!("layout", "upper|lower|flat", "upper",
        "how the remote's keys are made of signatures: XX/SIG, xx/SIG or SIG", str::parse => layout),
    of_remote!("format", "object|raw", "object",
        "how objects are written: compressed and verified, or as plain files", str::parse => format),
    of_remote!("level", "N", "3", "zstd level of compression, 1 to 19", level => level),
    valued!("key_file", "FILE", "none",
        "key: objects not written by a holder of it are misses", some_text => key_file),
    valued!("bearer_file", "FILE", "$CACHEDIRFS_BEARER_TOKEN",
        "bearer token for the remote", some_text => remote.bearer_file),
    valued!("basic_file", "FILE", "none", "user:password for the remote", some_text => remote.basic_file),
    valued!("netrc_file", "FILE", "none",
        "logins by host, in the form of netrc", some_text => remote.netrc_file),
    valued!("ca_file", "FILE", "the system's",
        "certificates (PEM) to trust", some_text => remote.ca_file),
    valued!("client_cert_file", "FILE", "none",
        "certificate (PEM) to show the server", some_text => remote.client_cert_file),
    valued!("client_key_file", "FILE", "none",
        "key (PEM) of that certificate", some_text => remote.client_key_file),
    valued!("headers_file", "FILE", "none",
        "headers for every call of a gRPC remote, Name: value a line", some_text => remote.headers_file),
    OptionSpec {
        name: "pr3971",
        value: None,
        default: "off",
        help: "read what SCons with pull request 3971 wrote into a Bazel cache, too",
        field: "remote.pr3971.",
        set: |draft, text| {
            draft.remote.pr3971 = switch(text)?;
            Ok(())
        },
    },
    valued!("ttl", "TIME", "for ever",
        "how long an object on a Redis lives after its upload or last touch", some_duration => remote.ttl),
    of_remote!("redis_prefix", "TEXT", "cachedirfs:",
        "what the keys in a Redis begin with", some_text => redis_prefix),
    valued!("endpoint", "URL", "the cloud's own",
        "where an object store is: https://host or, without TLS, http://host", some_text => remote.endpoint),
    valued!("region", "NAME", "$AWS_REGION, the profile's, us-east-1",
        "region of an S3 bucket", some_text => remote.region),
    valued!("profile", "NAME", "$AWS_PROFILE, default",
        "profile in ~/.aws/config and ~/.aws/credentials", some_text => remote.profile),
    valued!("account", "NAME", "$AZURE_STORAGE_ACCOUNT",
        "storage account of an az: remote", some_text => remote.account),
    switched!(
        "anonymous",
        "off",
        "ask an object store without credentials",
        remote.anonymous
    ),
    switched!(
        "imds",
        "on, off where $AWS_EC2_METADATA_DISABLED says so",
        "ask the metadata service of a virtual machine for credentials",
        remote.imds
    ),
    switched!(
        "path_style",
        "on with an endpoint, else off",
        "name the S3 bucket in the path of requests rather than in the host",
        remote.path_style
    ),
    switched!(
        "allow_other",
        "on for root, else off",
        "let other users use the mount",
        allow_other
    ),
    switched!(
        "default_permissions",
        "on",
        "let the kernel check permissions",
        default_permissions
    ),
    valued!("uid", "USER", "as on disk", "show everything as owned by this user", some_text => uid),
    valued!("gid", "GROUP", "as on disk", "show everything as of this group", some_text => gid),
    valued!("umask", "OCTAL", "as on disk", "take these permission bits away", mask => umask),
    switched!(
        "passthrough",
        "on, where the kernel and our rights allow it",
        "let the kernel read and write backing files itself",
        passthrough
    ),
    valued!("log_level", "LEVEL", "$CACHEDIRFS_LOG, $RUST_LOG, info",
        "off, error, warn, info, debug or trace", level_filter => log.level),
    valued!("log_file", "FILE", "syslog, in the foreground standard error",
        "append the log to a file", some_text => log.file),
    valued!("metrics", "ADDR", "none",
        "address, IP:PORT, at which Prometheus metrics and a status page are served", address => metrics),
    valued!("events", "FILE", "none",
        "write what happens to entries to a file, a line of JSON each; see cachedirfs why", some_text => events),
    valued!("events_size", "SIZE", "64M",
        "size at which the file of events is rotated", file_size => events_size),
    valued!("events_files", "N", "4",
        "older files of events that are kept", kept => events_files),
    OptionSpec {
        name: "remote",
        value: Some("REMOTE"),
        default: "none",
        help: "one more remote, asked after those named so far",
        field: "",
        set: |draft, text| {
            draft.more.push(some_text(text)?);
            Ok(())
        },
    },
    valued!("touch", "TIME", "off",
        "tell the remotes that an entry is in use, when they heard of it longer ago", touch => touch),
    switched!(
        "reshare",
        "off",
        "upload entries that are used here and that the remote lacks",
        reshare
    ),
    valued!("fsname", "NAME", "the remote without credentials",
        "source shown in the mount table", some_text => fsname),
    valued!("config", "FILE", "none",
        "a file (TOML) with what is said neither here nor in the environment", some_text => config_file),
];

/// An option of mount(8) that a file system is handed and that changes something here.
pub(super) struct Flag {
    pub(super) name: &'static str,
    /// What it switches, and to what.
    pub(super) of: &'static str,
    to: bool,
}

const fn flag(name: &'static str, of: &'static str, to: bool) -> Flag {
    Flag { name, of, to }
}

static KERNEL: &[Flag] = &[
    flag("rw", "ro", false),
    flag("suid", "nosuid", false),
    flag("nosuid", "nosuid", true),
    flag("dev", "nodev", false),
    flag("nodev", "nodev", true),
    flag("exec", "noexec", false),
    flag("noexec", "noexec", true),
    flag("noatime", "noatime", true),
    flag("atime", "noatime", false),
];

impl Flag {
    fn set(&self, on: bool, draft: &mut Draft) {
        let kernel = &mut draft.kernel;
        match self.of {
            "nosuid" => kernel.nosuid = on,
            "nodev" => kernel.nodev = on,
            "noexec" => kernel.noexec = on,
            "noatime" => kernel.noatime = on,
            _ => draft.ro = Some(on),
        }
    }
}

pub(super) fn kernel_flag(name: &str) -> Option<&'static Flag> {
    KERNEL.iter().find(|flag| flag.name == name)
}

/// Applies a comma-separated list of options.
pub(super) fn apply(list: &str, origin: &Origin, draft: &mut Draft) -> Result<(), ConfigError> {
    let options = split(list);
    let mut names = options.iter().map(|option| name_of(option));
    if names.any(|name| CREDENTIALS.contains(&name)) {
        // Whoever says how to log in means it instead of what was said less urgently.
        forget_credentials(draft);
    }
    options
        .iter()
        .filter(|option| !option.is_empty())
        .try_for_each(|option| {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option.as_str(), None),
            };
            apply_one(name, value, origin, draft)
        })
}

/// Applies one option.
pub(super) fn apply_one(
    name: &str,
    value: Option<&str>,
    origin: &Origin,
    draft: &mut Draft,
) -> Result<(), ConfigError> {
    if let (Some(flag), None | Some("on" | "off")) = (kernel_flag(name), value) {
        let on = flag.to == (value != Some("off"));
        flag.set(on, draft);
        let text = if on { "on" } else { "off" };
        draft.said.note(flag.of, text, origin);
        return Ok(());
    }
    if foreign::is_accepted(name) {
        return Ok(());
    }
    let (spec, value) = find(name, value)?;
    (spec.set)(draft, value).map_err(|why| wrong(name, why))?;
    draft.said.note(spec.name, value, origin);
    Ok(())
}

/// Applies an attribute of one remote. What is not understood may be anything, so it is not repeated.
pub(super) fn apply_attribute(attribute: &str, draft: &mut Draft) -> Result<(), ConfigError> {
    let (name, value) = match attribute.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (attribute, None),
    };
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !name.bytes().all(is_name) {
        return Err(wrong(
            "|",
            "behind it stands rw, ro, off or an option such as layout=flat; a | in a URL is written %7C".into(),
        ));
    }
    let (spec, value) = find(name, value)?;
    if !spec.is_of_one_remote() {
        let why = "is an option of the mount, not of one remote: give it with -o";
        return Err(wrong(name, why.into()));
    }
    forget_other_credentials(name, draft);
    let value = percent_decoded(value).map_err(|why| wrong(name, why))?;
    (spec.set)(draft, &value).map_err(|why| wrong(name, why))
}

/// Whoever logs in to one remote in a way of its own does not do so in the way of all.
fn forget_other_credentials(name: &str, draft: &mut Draft) {
    if CREDENTIALS.contains(&name) {
        forget_credentials(draft);
    }
}

/// The ways to log in, of which one counts.
const CREDENTIALS: [&str; 3] = ["basic_file", "bearer_file", "netrc_file"];

pub(super) fn forget_credentials(draft: &mut Draft) {
    let remote = &mut draft.remote;
    (remote.basic_file, remote.bearer_file, remote.netrc_file) = (None, None, None);
    CREDENTIALS.iter().for_each(|name| draft.said.forget(name));
}

fn percent_decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(byte.ok_or("a % is written %25")?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".into())
}

/// The option of that name.
pub(super) fn by_name(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.name == name)
}

/// The option that `name` means, and its value in full.
pub(super) fn find<'a>(
    name: &str,
    value: Option<&'a str>,
) -> Result<(&'static OptionSpec, &'a str), ConfigError> {
    let negated = || {
        name.strip_prefix("no")
            .and_then(by_name)
            .filter(|spec| spec.value.is_none())
    };
    match (by_name(name), value) {
        (Some(spec), Some(value)) => Ok((spec, value)),
        (Some(spec), None) => match spec.value {
            None => Ok((spec, "on")),
            Some(placeholder) => Err(wrong(name, format!("needs a value: {name}={placeholder}"))),
        },
        (None, None) if let Some(spec) = negated() => Ok((spec, "off")),
        (None, _) => Err(ConfigError::Unknown {
            name: name.to_owned(),
            suggestion: closest(name),
        }),
    }
}

pub(super) fn wrong(name: &str, why: String) -> ConfigError {
    ConfigError::Value {
        name: name.to_owned(),
        why,
    }
}

/// The known name that needs the fewest edits to become, if it is close enough to have been meant.
fn closest(typed: &str) -> Option<&'static str> {
    /// More edits than this, or than half of the name, and it was something else.
    const MOST_EDITS: usize = 3;
    /// Longer input is no misspelling, and not worth the work.
    const LONGEST: usize = 64;
    if typed.len() > LONGEST {
        return None;
    }
    let typed = typed.to_ascii_lowercase().replace('-', "_");
    let names = OPTIONS.iter().map(|spec| spec.name);
    let names = names
        .chain(KERNEL.iter().map(|flag| flag.name))
        .chain(foreign::accepted());
    let (edits, name) = names
        .map(|name| (edits(&typed, name), name))
        .min_by_key(|(edits, _)| *edits)?;
    (edits <= MOST_EDITS && edits * 2 <= name.len()).then_some(name)
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The table for `--help`.
pub fn help() -> String {
    let mut text = String::from("Options for -o:\n");
    for spec in OPTIONS {
        let head = match spec.value {
            Some(value) => format!("{}={value}", spec.name),
            None => format!("[no]{}", spec.name),
        };
        text += &format!(
            "  {head}\n          {} [default: {}]\n",
            spec.help, spec.default
        );
    }
    text += "\nThe options of mount(8) that every file system takes (rw, nosuid, nodev, noexec, noatime, _netdev, nofail, \
             user, x-…) are taken too.\nA comma in a value is written \\, and of an option given twice the last counts.";
    text
}

fn some_text<T: From<String>>(text: &str) -> Result<T, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("is empty".into());
    }
    Ok(text.to_owned().into())
}

fn touch(text: &str) -> Result<Option<Duration>, String> {
    match text {
        "off" => Ok(None),
        time => some_duration(time).map(Some),
    }
}

fn file_size(text: &str) -> Result<u64, String> {
    match amount(text)? {
        Amount::Bytes(bytes @ LEAST_FILE..) => Ok(bytes),
        _ => Err("expected 64K or more".into()),
    }
}

fn kept(text: &str) -> Result<u64, String> {
    let kept = text.parse().ok().filter(|n| *n <= MOST_FILES);
    kept.ok_or_else(|| format!("expected a number from 0 to {MOST_FILES}"))
}

fn push(text: &str) -> Result<Push, String> {
    match text {
        "on" => Ok(Push::On),
        "off" => Ok(Push::Off),
        "sync" => Ok(Push::Sync),
        _ => Err("expected on, off or sync".into()),
    }
}

fn level(text: &str) -> Result<i32, String> {
    let level = text.parse().ok().filter(|level| (1..=19).contains(level));
    level.ok_or_else(|| "expected a number from 1 (fastest) to 19 (smallest)".into())
}

fn level_filter(text: &str) -> Result<log::LevelFilter, String> {
    text.parse()
        .map_err(|_| "expected off, error, warn, info, debug or trace".into())
}
