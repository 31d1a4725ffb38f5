//! Options of other file systems and of mount(8) itself, that are taken so that an fstab works as it is: what they would
//! mean is done already, or has no meaning here.

use super::list::{name_of, split};

/// Options of mount(8) that mean nothing to us, or that mount(8) itself has acted on.
static ACCEPTED: &[&str] = &[
    "defaults",
    "_netdev",
    "nofail",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
];

/// An option that other file systems know and that often stands in an fstab.
pub struct Foreign {
    /// Its name, without a value.
    pub name: &'static str,
    /// What takes its place here.
    pub here: &'static str,
}

const ALWAYS_SOFT: &str =
    "a remote that does not answer is a miss after lookup_timeout, never an error and never a hang";
const IN_BACKGROUND: &str = "the mount answers at once, also while the remote is away";
const OWN_TIMES: &str = "see lookup_timeout, connect_timeout and stall_timeout";
const OWN_CACHE: &str =
    "what the kernel may remember follows from who can change an entry, which is nobody";
const OF_THE_URL: &str = "the remote's URL says it";
const PASSTHROUGH: &str = "the kernel reads and writes backing files itself";
const LOCAL: &str = "locks are local to this machine";

/// Options of mount.nfs(8) that are accepted, since this takes the place of an NFS mount, and what they mean here.
static FOREIGN: &[Foreign] = &[
    Foreign {
        name: "soft",
        here: ALWAYS_SOFT,
    },
    Foreign {
        name: "softerr",
        here: ALWAYS_SOFT,
    },
    Foreign {
        name: "hard",
        here: ALWAYS_SOFT,
    },
    Foreign {
        name: "intr",
        here: ALWAYS_SOFT,
    },
    Foreign {
        name: "nointr",
        here: ALWAYS_SOFT,
    },
    Foreign {
        name: "timeo",
        here: OWN_TIMES,
    },
    Foreign {
        name: "retrans",
        here: OWN_TIMES,
    },
    Foreign {
        name: "retry",
        here: IN_BACKGROUND,
    },
    Foreign {
        name: "bg",
        here: IN_BACKGROUND,
    },
    Foreign {
        name: "fg",
        here: IN_BACKGROUND,
    },
    Foreign {
        name: "rsize",
        here: PASSTHROUGH,
    },
    Foreign {
        name: "wsize",
        here: PASSTHROUGH,
    },
    Foreign {
        name: "vers",
        here: OF_THE_URL,
    },
    Foreign {
        name: "nfsvers",
        here: OF_THE_URL,
    },
    Foreign {
        name: "proto",
        here: OF_THE_URL,
    },
    Foreign {
        name: "tcp",
        here: OF_THE_URL,
    },
    Foreign {
        name: "udp",
        here: OF_THE_URL,
    },
    Foreign {
        name: "port",
        here: OF_THE_URL,
    },
    Foreign {
        name: "sec",
        here: "see bearer_file, basic_file and netrc_file",
    },
    Foreign {
        name: "lock",
        here: LOCAL,
    },
    Foreign {
        name: "nolock",
        here: LOCAL,
    },
    Foreign {
        name: "local_lock",
        here: LOCAL,
    },
    Foreign {
        name: "ac",
        here: OWN_CACHE,
    },
    Foreign {
        name: "noac",
        here: OWN_CACHE,
    },
    Foreign {
        name: "actimeo",
        here: OWN_CACHE,
    },
    Foreign {
        name: "acregmin",
        here: OWN_CACHE,
    },
    Foreign {
        name: "acregmax",
        here: OWN_CACHE,
    },
    Foreign {
        name: "acdirmin",
        here: OWN_CACHE,
    },
    Foreign {
        name: "acdirmax",
        here: OWN_CACHE,
    },
    Foreign {
        name: "cto",
        here: OWN_CACHE,
    },
    Foreign {
        name: "nocto",
        here: OWN_CACHE,
    },
    Foreign {
        name: "lookupcache",
        here: "see negative_ttl",
    },
    Foreign {
        name: "sharecache",
        here: OWN_CACHE,
    },
    Foreign {
        name: "nosharecache",
        here: OWN_CACHE,
    },
    Foreign {
        name: "fsc",
        here: "the backing directory is that cache",
    },
    Foreign {
        name: "nofsc",
        here: "the backing directory is what this is about",
    },
    Foreign {
        name: "nconnect",
        here: "see fetch_threads and upload_threads",
    },
];

/// Those of a list that only mean something to other file systems.
pub fn foreign(list: &str) -> Vec<&'static Foreign> {
    let options = split(list);
    let of = |option: &String| {
        let name = name_of(option);
        FOREIGN.iter().find(|foreign| foreign.name == name)
    };
    options.iter().filter_map(of).collect()
}

/// The names of options that mount(8) itself acts on, or that mean nothing.
pub(super) fn accepted() -> impl Iterator<Item = &'static str> {
    ACCEPTED.iter().copied()
}

/// Whether an option is taken and changes nothing.
pub(super) fn is_accepted(name: &str) -> bool {
    ACCEPTED.contains(&name)
        || FOREIGN.iter().any(|foreign| foreign.name == name)
        || name.starts_with("x-")
        || name.starts_with("X-")
        || name == "comment"
}
