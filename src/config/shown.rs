//! A configuration as lines: each option, the value that counts, and where that comes from.
//!
//! A line is one of a configuration file. What is a secret never is a value, and URLs are shown without credentials.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::origin::Origin;
use super::places::RemoteUrl;
use super::{Config, GIB, KIB, options};
use crate::remote::{Format, Layout};

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    None,
    /// On or off.
    Switch(bool),
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// Several.
    List(Vec<String>),
    /// Something that cannot be said in a file, in words.
    Elsewhere(String),
}

/// As in a configuration file; what cannot stand there is no value, but says something.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Switch(on) => write!(f, "{on}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::List(list) => {
                let each: Vec<_> = list.iter().map(|text| quoted(text)).collect();
                write!(f, "[{}]", each.join(", "))
            }
            Self::Elsewhere(what) => f.write_str(what),
        }
    }
}

/// One option of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub name: &'static str,
    /// What counts.
    pub value: Value,
    /// Who said it.
    pub origin: Origin,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = matches!(self.value, Value::None | Value::Elsewhere(_));
        let mark = if hidden { "# " } else { "" };
        let line = format!("{mark}{} = {}", self.name, self.value);
        write!(f, "{line:40}  # {}", self.origin)
    }
}

/// Flags of mount(2), which are no options of ours.
const FLAGS: [&str; 4] = ["nosuid", "nodev", "noexec", "noatime"];

/// Every option of a configuration.
pub fn shown(config: &Config) -> Vec<Shown> {
    let ours = options::OPTIONS.iter().map(|spec| spec.name);
    let names = ["remote", "mountpoint"].into_iter();
    let names = names
        .chain(ours.filter(|name| *name != "remote"))
        .chain(FLAGS);
    names
        .map(|name| Shown {
            name,
            value: value(config, name),
            origin: origin(config, name),
        })
        .collect()
}

/// The value of one option.
pub fn value(config: &Config, name: &str) -> Value {
    match VALUES.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => value(config),
        // One that does not say how it looks, looks as it was typed.
        None => match config.said.of(name) {
            Some(said) => Value::Text(said.text.clone()),
            None => Value::None,
        },
    }
}

fn origin(config: &Config, name: &str) -> Origin {
    let said = config.said.origin(name);
    let from_rust_log = name == "log_level" && config.log.filter.is_some();
    match said {
        Origin::Default if from_rust_log => Origin::Environment("RUST_LOG"),
        said => said,
    }
}

type Look = fn(&Config) -> Value;

static VALUES: &[(&str, Look)] = &[
    ("remote", remotes),
    ("mountpoint", |c| text(c.mountpoint.display())),
    ("backing", |c| text(c.backing.display())),
    ("size", |c| bytes(c.size)),
    ("min_free", |c| bytes(c.min_free)),
    ("ro", |c| Value::Switch(c.ro)),
    ("push", |c| text(c.push.as_str())),
    ("negative_ttl", |c| time(c.negative_ttl)),
    ("lookup_timeout", |c| time(c.lookup_timeout)),
    ("connect_timeout", |c| {
        time(c.remote_options.connect_timeout)
    }),
    ("stall_timeout", |c| time(c.remote_options.stall_timeout)),
    ("request_timeout", |c| {
        time(c.remote_options.request_timeout)
    }),
    ("min_speed", |c| bytes(c.remote_options.min_speed)),
    ("drain_timeout", |c| time(c.drain_timeout)),
    ("pending_max", |c| Value::Number(c.pending_max)),
    ("pending_size", |c| bytes(c.pending_size)),
    ("fetch_threads", |c| number(c.fetch_threads)),
    ("upload_threads", |c| number(c.upload_threads)),
    ("event_threads", |c| number(c.event_threads)),
    ("layout", |c| {
        text(match c.remote_options.layout {
            Layout::Upper => "upper",
            Layout::Lower => "lower",
            Layout::Flat => "flat",
        })
    }),
    ("format", |c| {
        text(match c.remote_options.format {
            Format::Object => "object",
            Format::Raw => "raw",
        })
    }),
    ("level", |c| {
        Value::Number(c.remote_options.level.unsigned_abs().into())
    }),
    ("key_file", |c| path(&c.key_file)),
    ("bearer_file", |c| match &c.remote_options.bearer {
        Some(_) => Value::Elsewhere("$CACHEDIRFS_BEARER_TOKEN".to_owned()),
        None => path(&c.remote_options.bearer_file),
    }),
    ("basic_file", |c| path(&c.remote_options.basic_file)),
    ("netrc_file", |c| path(&c.remote_options.netrc_file)),
    ("ca_file", |c| path(&c.remote_options.ca_file)),
    ("client_cert_file", |c| {
        path(&c.remote_options.client_cert_file)
    }),
    ("client_key_file", |c| {
        path(&c.remote_options.client_key_file)
    }),
    ("headers_file", |c| path(&c.remote_options.headers_file)),
    ("pr3971", |c| Value::Switch(c.remote_options.pr3971)),
    ("ttl", |c| c.remote_options.ttl.map_or(Value::None, time)),
    ("redis_prefix", |c| text(&c.remote_options.redis_prefix)),
    ("endpoint", |c| {
        let shown = |url: &String| text(RemoteUrl::shown_of(url));
        c.remote_options
            .endpoint
            .as_ref()
            .map_or(Value::None, shown)
    }),
    ("region", |c| some_text(&c.remote_options.region)),
    ("profile", |c| some_text(&c.remote_options.profile)),
    ("account", |c| some_text(&c.remote_options.account)),
    ("anonymous", |c| {
        Value::Switch(c.remote_options.anonymous.unwrap_or(false))
    }),
    ("imds", |c| switch(c.remote_options.imds)),
    ("path_style", |c| switch(c.remote_options.path_style)),
    ("allow_other", |c| Value::Switch(c.allow_other)),
    ("default_permissions", |c| {
        Value::Switch(c.default_permissions)
    }),
    ("uid", |c| {
        c.uid.map_or(Value::None, |id| Value::Number(id.into()))
    }),
    ("gid", |c| {
        c.gid.map_or(Value::None, |id| Value::Number(id.into()))
    }),
    ("umask", |c| {
        c.umask
            .map_or(Value::None, |bits| text(format!("{bits:03o}")))
    }),
    ("passthrough", |c| Value::Switch(c.passthrough)),
    ("log_level", |c| match (c.log.level, &c.log.filter) {
        (Some(level), _) => text(level.as_str().to_ascii_lowercase()),
        (None, Some(filter)) => Value::Elsewhere(filter.clone()),
        (None, None) => text("info"),
    }),
    ("log_file", |c| path(&c.log.file)),
    ("touch", |c| c.touch.map_or(text("off"), time)),
    ("reshare", |c| Value::Switch(c.reshare)),
    ("fsname", |c| text(&c.fsname)),
    ("metrics", |c| c.metrics.map_or(Value::None, text)),
    ("events", |c| path(&c.events.file)),
    ("events_size", |c| bytes(c.events.size)),
    ("events_files", |c| Value::Number(c.events.files)),
    ("config", |c| path(&c.config_file)),
    ("nosuid", |c| Value::Switch(c.kernel.nosuid)),
    ("nodev", |c| Value::Switch(c.kernel.nodev)),
    ("noexec", |c| Value::Switch(c.kernel.noexec)),
    ("noatime", |c| Value::Switch(c.kernel.noatime)),
];

fn remotes(config: &Config) -> Value {
    let each = config.tiers.iter();
    let mut each: Vec<_> = each
        .map(|tier| format!("{}{}", tier.shown, tier.attributes))
        .collect();
    match each.len() {
        1 => Value::Text(each.remove(0)),
        _ => Value::List(each),
    }
}

fn text(text: impl fmt::Display) -> Value {
    Value::Text(text.to_string())
}

fn some_text(text: &Option<String>) -> Value {
    text.clone().map_or(Value::None, Value::Text)
}

fn path(path: &Option<PathBuf>) -> Value {
    path.as_ref()
        .map_or(Value::None, |path| text(path.display()))
}

fn switch(on: Option<bool>) -> Value {
    on.map_or(Value::None, Value::Switch)
}

fn number(number: usize) -> Value {
    Value::Number(number.try_into().unwrap_or(u64::MAX))
}

/// In the largest unit that leaves nothing over.
fn bytes(bytes: u64) -> Value {
    let units = [(GIB * KIB, "T"), (GIB, "G"), (KIB * KIB, "M"), (KIB, "K")];
    /// What needs more digits is easier to read in bytes.
    const MOST: u64 = 10_000;
    let whole =
        |(size, _): &&(u64, &str)| bytes > 0 && bytes.is_multiple_of(*size) && bytes / size < MOST;
    text(match units.iter().find(whole) {
        Some((size, unit)) => format!("{}{unit}", bytes / size),
        None => bytes.to_string(),
    })
}

fn time(time: Duration) -> Value {
    const UNITS: [(u128, &str); 4] = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    let millis = time.as_millis();
    let whole = |(length, _): &&(u128, &str)| millis > 0 && millis.is_multiple_of(*length);
    text(match UNITS.iter().find(whole) {
        Some((length, unit)) => format!("{}{unit}", millis / length),
        None if millis == 0 => "0".to_owned(),
        None => format!("{millis}ms"),
    })
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}
