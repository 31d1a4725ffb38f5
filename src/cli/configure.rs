//! From what was typed, the environment and a configuration file to a [`Config`]: the only one that reads the file.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::{Config, FileConfig, Host, Sources, list};
use crate::control::Remount;
use crate::mount::Resolve;

use super::{Env, Exit, Failure, complain, preflight, real_path};

/// Longest configuration file. Anything longer is something else.
const LONGEST: u64 = 1 << 20;
/// In fstab, where a source has to stand: the file says it.
const NO_REMOTE: &str = "none";

/// What was typed to mount something.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Typed {
    pub(super) remote: Option<String>,
    /// As the mount table will have it.
    pub(super) mountpoint: Option<PathBuf>,
    pub(super) options: Vec<String>,
}

impl Typed {
    /// What [`Resolve::typed`] gave to the program before.
    pub(super) fn handed_over(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|err| format!("what was typed cannot be read: {err}"))
    }

    /// The configuration that this gives, and what is worth a warning.
    pub(super) fn config(
        &self,
        running: Option<&Config>,
        host: &Host,
    ) -> Result<(Config, Vec<String>), String> {
        let environment = host.options.iter().cloned();
        let lists: Vec<_> = environment.chain(self.options.iter().cloned()).collect();
        let named = list::last(&lists, "config").filter(|name| !name.is_empty());
        let read = named
            .map(|name| read(&host.cwd.join(name), host))
            .transpose()?;
        let (file, warning) = read.unzip();
        let remote = self.remote.as_deref();
        let remote = remote.filter(|remote| file.is_none() || *remote != NO_REMOTE);
        let sources = Sources {
            remote,
            mountpoint: self.mountpoint.as_deref(),
            options: &self.options,
            file: file.as_ref(),
            running,
        };
        let config = Config::from_sources(&sources, host).map_err(|err| err.to_string())?;
        Ok((config, warning.flatten().into_iter().collect()))
    }
}

/// Reads again what a mount was configured with, for its daemon.
struct Resolver {
    typed: Mutex<Typed>,
    host: Host,
}

/// What the daemon of a mount that was typed like that needs to change it.
pub(super) fn resolver(typed: &Typed, env: &Env) -> Box<dyn Resolve> {
    Box::new(Resolver {
        typed: Mutex::new(typed.clone()),
        host: env.host.clone(),
    })
}

impl Resolver {
    /// What would have been typed to have it as it is wanted.
    fn changed(&self, wanted: &Remount, running: &Config) -> Typed {
        let typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = |source: &&String| {
            source.as_str() != running.remote.as_given() && **source != running.remote_shown()
        };
        let news = wanted.source.as_ref().filter(is_news);
        Typed {
            remote: news.or(typed.remote.as_ref()).cloned(),
            mountpoint: Some(running.mountpoint.clone()),
            options: vec![list::merged(&typed.options, &wanted.options)],
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, wanted: &Remount, running: &Config) -> Result<(Config, Vec<String>), String> {
        let typed = self.changed(wanted, running);
        let (config, mut warnings) = typed.config(Some(running), &self.host)?;
        warnings.extend(preflight::check_change(&config)?);
        Ok((config, warnings))
    }

    fn keep(&self, wanted: &Remount, running: &Config) {
        let changed = self.changed(wanted, running);
        *self.typed.lock().unwrap_or_else(PoisonError::into_inner) = changed;
    }

    fn typed(&self) -> String {
        let typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_string(&*typed).expect("it has string keys only")
    }
}

/// The configuration for talking to a remote without mounting it.
pub(super) fn unmounted(remote: &str, options: &[String], env: &Env) -> Result<Config, String> {
    let typed = Typed {
        remote: Some(remote.to_owned()),
        mountpoint: Some(PathBuf::from("/")),
        options: options.to_vec(),
    };
    let (config, warnings) = typed.config(None, &env.host)?;
    warnings.iter().for_each(complain);
    Ok(config)
}

/// The same for a mount.
pub(super) fn mounted(typed: &Typed, env: &Env) -> Result<Config, Failure> {
    let usage = |err| Failure::new(Exit::Usage, err);
    let (mut config, warnings) = typed.config(None, &env.host).map_err(usage)?;
    warnings.iter().for_each(complain);
    let real = real_path(&config.mountpoint, &env.host.cwd);
    if real != config.mountpoint {
        // The file's, by way of a symbolic link. What is named after it is to be named as if it had been typed.
        let typed = Typed {
            mountpoint: Some(real),
            ..typed.clone()
        };
        config = typed.config(None, &env.host).map_err(usage)?.0;
    }
    Ok(config)
}

/// Reads a configuration file, if nobody else may have written it.
fn read(path: &Path, host: &Host) -> Result<(FileConfig, Option<String>), String> {
    let shown = path.display();
    let cannot = |err: std::io::Error| format!("cannot read the configuration file {shown}: {err}");
    let mut file = File::open(path).map_err(cannot)?;
    let warning = trusted(path, &file, host)?;
    let mut text = String::new();
    file.by_ref()
        .take(LONGEST + 1)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    if text.len() as u64 > LONGEST {
        return Err(format!(
            "the configuration file {shown} is longer than a megabyte"
        ));
    }
    let config = FileConfig::parse(path, &text).map_err(|err| err.to_string())?;
    Ok((config, warning))
}

/// Refuses a file that others may have written: it says where secrets are read and where bytes go to.
fn trusted(path: &Path, file: &File, host: &Host) -> Result<Option<String>, String> {
    let shown = path.display();
    let found = file
        .metadata()
        .map_err(|err| format!("cannot read the configuration file {shown}: {err}"))?;
    if !found.is_file() {
        return Err(format!("the configuration file {shown} is not a file"));
    }
    if found.uid() != 0 && found.uid() != host.uid {
        return Err(format!(
            "the configuration file {shown} belongs to user {}, who may not say what is mounted here; give it away with: chown {} {shown}",
            found.uid(),
            host.uid
        ));
    }
    if found.mode() & 0o002 != 0 {
        return Err(format!(
            "everybody may write the configuration file {shown}; take that away with: chmod o-w {shown}"
        ));
    }
    let by_group = found.mode() & 0o020 != 0 && found.gid() != 0 && host.uid == 0;
    Ok(by_group.then(|| {
        format!(
            "the group {} may write the configuration file {shown}, and so say what root mounts",
            found.gid()
        )
    }))
}
