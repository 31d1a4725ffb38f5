//! cachedirfs: a FUSE filesystem that presents a remote cache as a SCons CacheDir.
//!
//! This page is the one to read first. What users see is in `README.md` and `cachedirfs(1)`; every format and
//! the exact behaviour of a mount are in `cachedirfs(5)`.
//!
//! # Vocabulary
//!
//! | word | meaning |
//! | --- | --- |
//! | **signature** | 32 to 128 lower-case hex digits by which SCons names the output of a build step ([`signature::Signature`]) |
//! | **entry** | a file or symlink named by its signature, in a prefix directory: `XX/SIG`. Only entries are fetched and uploaded |
//! | **place** | where an entry stands: its signature, and the length of the prefix of its directory ([`name::Place`]) |
//! | **root file** | `config`, `CACHEDIR.TAG` or `config.lock` in the root |
//! | **scratch** | every other name: plain local files and directories ([`name::Name`]) |
//! | **remote** | where entries are shared: something that holds objects by signature ([`remote::Remote`]) |
//! | **object** | one entry as a remote holds it: header and zstd frames, or raw ([`object`]) |
//! | **blob** | bytes under a key in a dumb store, before anybody looked whether they are an object ([`object::Blob`]) |
//! | **backing directory** | the local directory that holds the entries: a CacheDir itself, with `.cachedirfs/` beside ([`store`]) |
//! | **push** | an entry comes to stand in its place by somebody's rename, link or write |
//! | **commit** | the moment from which an entry counts as whole; its content never changes again |
//! | **action cache** | what Bazel calls a remote cache: an `ActionResult` by key, and the blobs it names by SHA-256 ([`remote::reapi`]) |
//! | **pending** | pushed, and not on the remote yet: a hard link in the journal `.cachedirfs/pending/` ([`upload`]) |
//! | **miss** | the remote was asked and does not have it. No error: `Ok(None)` |
//!
//! # Two ways of the data
//!
//! ```text
//! lookup  kernel -> fuse -> fs: on the disk? known absent? --no--> fetch: remote -> object -> store -> answer
//! push    kernel -> fuse -> fs: rename: link in pending/, rename, queue -> answer ... upload: pending/ -> object -> remote
//! ```
//!
//! # Map
//!
//! | module | what it is for | what it never knows |
//! | --- | --- | --- |
//! | [`signature`], [`name`] | the nouns; a path parsed once, at the door | files, remotes, the kernel |
//! | [`clock`], [`sys`], [`stop`] | time; every `unsafe` block; a request to stop | everything of ours |
//! | [`stats`] | the counters and times, shared by all; [`stats::event`]: what happens to an entry, said once at the place where it is decided | who counts, who listens |
//! | [`events`] | the event log: its lines, its writer with rotation, its reader; why an entry was missed, what changed between two builds | what a mount is made of, the command line |
//! | [`object`] | the format: content to payload, blob to content that verifies itself | remotes, keys, directories |
//! | [`remote`] | the contract, the list of schemes, `file`, `http`, `bazel`, `grpc`, `cloud` (`s3`, `gs`, `az`), `redis`, `memory`; `retry`, `breaker` and `deadline` around any of them, `shards` and `tiers` over several | disk layout, file system, kernel |
//! | [`store`] | the backing directory: lock, layout, index, eviction, the one way in for bytes, power cuts, hashes | network, remotes, uploads, kernel |
//! | [`fetch`] | remote to store, once however many wait; recent misses | file system, kernel |
//! | [`upload`] | journal, queue and workers: store to remote until it has it | file system, kernel |
//! | [`upkeep`] | promotion into upper tiers, touch, reshare: store to remote, when there is time | file system, kernel |
//! | [`fs`] | the file system: one method an operation, returning values | replies, threads, network |
//! | [`fuse`] | requests to `fs` and values to replies; passthrough | policy |
//! | [`control`] | the socket: status, flush, remove, remount, stop; both ends; the mount table | what a mount is made of |
//! | [`metrics`] | what Prometheus and a browser are shown of a mount, and the last day of it | files, remotes, the file system |
//! | [`config`] | remote, mountpoint and `-o` to a valid `Config`; the table of options | environment, files |
//! | [`mount`] | builds and joins every part, owns every thread; [`mount::handover`]: another version goes on with a mount in use | the command line |
//! | [`daemon`], [`logging`] | into the background and back with the news, signals, supervisor and its watchdog; where the log goes | what a mount is made of |
//! | [`cli`] | the commands; the only one that prints, exits or reads the environment | |
//!
//! # Arrows
//!
//! An arrow is "uses"; none points up. Not drawn: `config` uses the option types of `remote`, `logging` those of
//! `config`, `stop` and `store` use `sys`, `cli` the `store` for `verify`.
//!
//! ```text
//!  main -> cli -> config, control, logging
//!           '--> daemon -> mount              mount builds and wires all below
//!  fuse                      control::server, metrics
//!    v                           v
//!   fs ---------> upload, fetch, upkeep > stats
//!    |              v        v
//!    '---------> store     remote <--- tiers, shards, retry, breaker, deadline; file, http, redis, memory
//!                  v          v
//!    signature  name       object     clock  sys     the bottom
//! ```
//!
//! `store` and `remote` never meet but in `fetch`, `upload` and `upkeep`. No network call is made on a thread that answers the
//! kernel, and no lock is held over one.
//!
//! # The promises, and where each is kept
//!
//! 1. **Verified before visible.** [`object::decode`] gives content that ends in an error unless length, hash and
//!    signature are right; [`store::Incoming`] gives a name only to what was read to its end; [`store::fresh`] tells after a power cut whose bytes
//!    may be missing; [`store::verify`] finds what rotted. Tests: `src/object/tests.rs`,
//!    `remote_contract` (`what_is_wrong_is_corrupt_and_is_repaired`), `http_faults`. Raw objects carry no hash: there it is the length.
//! 2. **Never worse than no cache.** Every failure of a remote is a miss; [`fetch`] keeps a budget of what lookups wait for
//!    in vain, [`remote::deadline`] knows the calls that do not return, and [`remote::breaker`] stops asking. Tests: `faults`,
//!    `scons::dead` (real builds against every kind of dead remote), `src/remote/breaker/`, `src/fetch/`.
//! 3. **Nothing pushed is lost.** [`upload::journal`] has the bytes before the rename returns, and [`upload::queue`] has
//!    them until the remote answers or there are too many; [`store::fresh`] and [`store::sync`] see to power cuts. Tests:
//!    `mounted::kill9`, `mounted::stop`, `mounted::upgrade`, `cli::remount`, `upload_outage`, `store_crash`, `mounted::powercut`, `soak`. What a power cut may
//!    cost: WHAT SURVIVES in `cachedirfs(5)`.
//! 4. **The disk is bounded.** [`store::evict`] makes room before bytes are written, [`store::health`] says what a failing disk
//!    means, and `fs::standin` keeps builds going on one. Tests: `mounted::disk`, `mounted::big`. Entries only: scratch
//!    files are not counted until they are renamed; what is left of them after a day is collected (`leftovers`).
//! 5. **Only trusted bytes.** [`object::Key`]; [`config`] turns `ro` into "never pushes"; [`signature::Meta`] has no room for
//!    a privilege bit. Tests: `remote_contract` (`what_a_stranger_wrote_is_not_believed_and_is_written_over`), `scons::options`.
//! 6. **It always mounts.** [`mount::Mount::start`] asks nothing over the network and does not wait for [`store::scan`].
//!    Tests: `cli::mounts`, `mounted::big`, `mounted::stale`; under automounters and systemd `cli::autofs`, `cli::systemd`. Nor does
//!    opening a remote touch it.
//! 7. **The backing directory is a CacheDir.** [`store::layout`] makes nothing else but `.cachedirfs/`. Tests: `scons::backing`.
//!
//! # How to add
//!
//! - a kind of remote: the head of [`remote`];
//! - an `-o` option: the head of [`config`], and its line in `man/cachedirfs.1` (`tests/docs.rs` asks for it);
//! - a command: the head of [`cli`], and its section in `man/cachedirfs.1`;
//! - a counter: a line in [`stats`], and its line in `man/cachedirfs.1`; if it is of entries, a variant of [`stats::event::What`].

pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod events;
pub mod fetch;
pub mod fs;
pub mod fuse;
pub mod logging;
pub mod metrics;
pub mod mount;
pub mod name;
pub mod object;
pub mod remote;
pub mod signature;
pub mod stats;
pub mod stop;
pub mod store;
pub mod sys;
pub mod upkeep;
pub mod upload;
