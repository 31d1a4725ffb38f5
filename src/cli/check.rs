//! `cachedirfs check`: tries a remote out with one small object, without mounting it.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crate::clock::{Clock, SystemClock};
use crate::config::options;
use crate::mount;
use crate::remote::{Content, Put, Remote, RemoteError};
use crate::signature::{Meta, Signature};

use super::{Env, Exit, Failure, configure, plural, say};

const CONTENT: &[u8] = b"Written by `cachedirfs check`. It can be removed.\n";

/// Try a remote: can it be read, written and listed, and how quickly
///
/// Writes one small object and removes it again, unless -o ro is given.
#[derive(clap::Args)]
#[command(after_help = options::help())]
pub(super) struct Args {
    /// URL of the remote, see cachedirfs(1); of several, each is tried
    remote: String,
    /// Options, as they would be for mounting it
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let config = configure::unmounted(&args.remote, &args.options, env)
        .map_err(|err| Failure::new(Exit::Usage, err))?;
    let clock = SystemClock::shared();
    let remotes = mount::open_remotes(&config).map_err(|err| {
        Failure::new(Exit::Failed, format!("cannot use {}: {err}", config.remote))
    })?;
    let mut exit = Exit::Done;
    for opened in remotes {
        say(format_args!("checking {}", opened.remote.describe()));
        let mut check = Check {
            remote: opened.remote,
            clock: clock.clone(),
            probe: probe(&*clock),
            failed: false,
        };
        check.all(!opened.writes);
        if check.failed {
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}

/// A signature that no build has and no other check uses.
fn probe(clock: &dyn Clock) -> Signature {
    let now = clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let host = std::fs::read("/proc/sys/kernel/hostname").unwrap_or_else(|_| b"?".to_vec());
    let host = std::ffi::OsStr::from_bytes(&host).to_string_lossy();
    let seed = format!(
        "cachedirfs check {host} {} {}",
        std::process::id(),
        now.as_nanos()
    );
    Signature::parse(blake3::hash(seed.as_bytes()).to_hex().as_bytes())
        .expect("64 lower-case hex digits")
}

struct Check {
    remote: Arc<dyn Remote>,
    clock: Arc<dyn Clock>,
    probe: Signature,
    failed: bool,
}

impl Check {
    fn all(&mut self, read_only: bool) {
        self.step("look up", |remote, probe| match remote.get(probe)? {
            None => Ok("a miss, as expected".into()),
            Some(_) => Err(RemoteError::Corrupt(
                "it has an object under a signature that nobody ever made".into(),
            )),
        });
        if read_only {
            say("  write    not tried (ro)");
        } else if !self.failed && self.step("write", write) {
            self.step("read", read);
            self.step("delete", delete);
        }
        if !self.failed {
            self.step("list", list);
        }
    }

    /// Runs one step and says how it went; whether it succeeded.
    fn step(
        &mut self,
        name: &str,
        run: impl FnOnce(&dyn Remote, &Signature) -> Result<String, RemoteError>,
    ) -> bool {
        let began = self.clock.now();
        let result = run(&*self.remote, &self.probe);
        let took = millis(self.clock.now().saturating_sub(began));
        match result {
            Ok(what) => say(format_args!("  {name:<8} ok in {took}: {what}")),
            Err(RemoteError::Unsupported(why)) => say(format_args!(
                "  {name:<8} not offered: {why}; mounting works without"
            )),
            Err(err) => {
                say(format_args!(
                    "  {name:<8} FAILED after {took}: {err}\n           {}",
                    advice(&err)
                ));
                self.failed = true;
                return false;
            }
        }
        true
    }
}

fn write(remote: &dyn Remote, probe: &Signature) -> Result<String, RemoteError> {
    match remote.put(probe, Meta::file(0o644), &Content::Bytes(CONTENT.to_vec()))? {
        Put::Stored => Ok(format!("{} bytes", CONTENT.len())),
        Put::Present | Put::Diverged { .. } => Err(RemoteError::Corrupt(
            "it claims to have had the object before".into(),
        )),
    }
}

fn read(remote: &dyn Remote, probe: &Signature) -> Result<String, RemoteError> {
    let object = remote.get(probe)?.ok_or_else(|| {
        RemoteError::Corrupt(
            "what was just written is not there; is writing and reading the same place?".into(),
        )
    })?;
    let mut content = Vec::new();
    object
        .content
        .take(1 << 20)
        .read_to_end(&mut content)
        .map_err(RemoteError::from_io)?;
    if content == CONTENT {
        return Ok("what was written".into());
    }
    Err(RemoteError::Corrupt(format!(
        "{} other bytes than were written",
        content.len()
    )))
}

fn delete(remote: &dyn Remote, probe: &Signature) -> Result<String, RemoteError> {
    match remote.delete(probe) {
        Ok(true) => Ok("removed again".into()),
        Ok(false) => Err(RemoteError::Corrupt(
            "what was just read is not there".into(),
        )),
        Err(RemoteError::Unsupported(why)) => Err(RemoteError::Unsupported(format!(
            "{why} (the object {probe} stays)"
        ))),
        Err(err) => Err(err),
    }
}

fn list(remote: &dyn Remote, _probe: &Signature) -> Result<String, RemoteError> {
    let (mut objects, mut bytes) = (0_u64, 0_u64);
    remote.list(&mut |listed| {
        objects += 1;
        bytes = bytes.saturating_add(listed.size);
    })?;
    let (objects, bytes) = (plural(objects, "object"), plural(bytes, "byte"));
    Ok(format!("{objects}, {bytes} as stored"))
}

fn advice(err: &RemoteError) -> &'static str {
    match err {
        RemoteError::Transient(_) | RemoteError::Busy(..) | RemoteError::Slow(_) => {
            "Is it up, and can this machine reach it? Mounting works, with misses until it is."
        }
        RemoteError::Refused(_) => {
            "Credentials or rights: see -o bearer_file=, basic_file=, netrc_file=; -o ro if it is meant to be read only."
        }
        RemoteError::Untrusted(_) => {
            "Mounting works, with misses until the server has a certificate that is trusted here."
        }
        RemoteError::Corrupt(_) => {
            "Something changes or invents objects: a proxy, another layout= or format=, another key_file=."
        }
        RemoteError::Full(_) => {
            "It has no room or allows no objects of this size (nginx: client_max_body_size)."
        }
        RemoteError::Misconfigured(_) => "The URL or an option is wrong.",
        RemoteError::Local(_) => "The failure is on this machine, not at the remote.",
        RemoteError::Partly(_) | RemoteError::Unsupported(_) => "",
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
