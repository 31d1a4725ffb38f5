//! Whether the backing disk can still be used.
//!
//! A plain state machine: errors are reported to it, time is passed in, and it says when a small write is to probe the
//! disk. One error proves little (one file can lie on a bad sector), so it only raises a suspicion; a probe that fails
//! makes the disk sick, and a probe that succeeds makes it well again. It knows no disk: see `store::keep`.

use std::time::Duration;

use rustix::io::Errno;

/// How often a sick disk is probed.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// The health of one disk.
#[derive(Debug, Default)]
pub struct Health {
    /// Since when it is sick, and why.
    sick: Option<(Duration, String)>,
    /// What raised a suspicion that no probe has looked into.
    suspicion: Option<String>,
    probed: Duration,
}

/// A change that is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It cannot be used any more.
    Sick(String),
    /// It can be used again, after so long.
    Well(Duration),
}

impl Health {
    /// An operation failed. Whether that raises the first suspicion, so that a probe should not wait.
    pub fn suspect(&mut self, why: impl FnOnce() -> String) -> bool {
        if self.sick.is_some() || self.suspicion.is_some() {
            return false;
        }
        self.suspicion = Some(why());
        true
    }

    /// How long until a probe is due; `None` while there is no reason for one.
    pub fn probe_in(&self, now: Duration) -> Option<Duration> {
        match (&self.sick, &self.suspicion) {
            (Some(_), _) => Some((self.probed + PROBE_EVERY).saturating_sub(now)),
            (None, Some(_)) => Some(Duration::ZERO),
            (None, None) => None,
        }
    }

    /// What a probe found out.
    pub fn probed(&mut self, result: Result<(), String>, now: Duration) -> Option<Change> {
        self.probed = now;
        let suspicion = self.suspicion.take();
        match (result, &self.sick) {
            (Ok(()), Some((since, _))) => {
                let after = now.saturating_sub(*since);
                self.sick = None;
                Some(Change::Well(after))
            }
            (Err(why), None) => {
                let why = suspicion.map_or(why.clone(), |first| format!("{first}; {why}"));
                self.sick = Some((now, why.clone()));
                Some(Change::Sick(why))
            }
            (Ok(()), None) | (Err(_), Some(_)) => None,
        }
    }

    /// Why it cannot be used, and for how long it has not been.
    pub fn trouble(&self, now: Duration) -> Option<(Duration, &str)> {
        let (since, why) = self.sick.as_ref()?;
        Some((now.saturating_sub(*since), why))
    }
}

/// Whether an error says that the disk, or the file system on it, fails, and not that the call was wrong.
pub fn is_disk_failure(error: Errno) -> bool {
    matches!(
        error,
        Errno::IO
            | Errno::ROFS
            | Errno::NODEV
            | Errno::NXIO
            | Errno::STALE
            | Errno::UCLEAN
            | Errno::NOTCONN
            | Errno::SHUTDOWN
            | Errno::TIMEDOUT
            | Errno::REMOTEIO
            | Errno::HOSTDOWN
    )
}

/// Whether an error says that the disk is full: of bytes, of inodes, or of what this user may have of them.
pub fn is_full(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn one_error_is_a_suspicion_and_a_probe_that_succeeds_ends_it() {
        let mut health = Health::default();
        assert_eq!(health.probe_in(seconds(1)), None);
        assert!(health.suspect(|| "EIO".into()));
        assert!(!health.suspect(|| "again".into()), "one probe is enough");
        assert_eq!(health.probe_in(seconds(1)), Some(Duration::ZERO));
        assert_eq!(health.trouble(seconds(1)), None);
        assert_eq!(health.probed(Ok(()), seconds(1)), None);
        assert_eq!(health.probe_in(seconds(1)), None);
    }

    #[test]
    fn a_sick_disk_is_probed_until_it_is_well_and_each_change_is_told_once() {
        let mut health = Health::default();
        health.suspect(|| "cannot open XX".into());
        let sick = Change::Sick("cannot open XX; no write".into());
        assert_eq!(
            health.probed(Err("no write".into()), seconds(5)),
            Some(sick)
        );
        assert_eq!(health.probed(Err("no write".into()), seconds(7)), None);
        assert_eq!(health.trouble(seconds(8)).unwrap().0, seconds(3));
        assert_eq!(health.probe_in(seconds(8)), Some(seconds(1)));
        assert!(!health.suspect(|| "more".into()));
        assert_eq!(
            health.probed(Ok(()), seconds(9)),
            Some(Change::Well(seconds(4)))
        );
        assert_eq!(
            (health.trouble(seconds(9)), health.probe_in(seconds(9))),
            (None, None)
        );
    }

    #[test]
    fn a_full_disk_is_not_a_sick_one() {
        for full in [Errno::NOSPC, Errno::DQUOT] {
            assert!(is_full(full) && !is_disk_failure(full));
        }
        for wrong_call in [Errno::NOENT, Errno::EXIST, Errno::ACCESS, Errno::XDEV] {
            assert!(!is_full(wrong_call) && !is_disk_failure(wrong_call));
        }
    }
}
