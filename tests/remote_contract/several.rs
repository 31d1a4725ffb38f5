//! Tiers and shards as remotes: each part behind retry, breaker and deadline, as a mount stacks them.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cachedirfs::clock::SystemClock;
use cachedirfs::remote::Remote;
use cachedirfs::remote::shards::{Shard, Shards};
use cachedirfs::remote::tiers::{Job, Runner, Tier, Tiers};

use super::cases::{Case, Store, behind};

struct Spawner;

impl Runner for Spawner {
    fn run(&self, job: Job) -> Result<(), Job> {
        thread::spawn(job);
        Ok(())
    }
}

/// One case of several: what is behind it lies in all of them.
fn joined(remote: Arc<dyn Remote>, cases: Vec<Case>) -> Case {
    let mut stores = Vec::new();
    let mut held: Vec<Box<dyn std::any::Any + Send + Sync>> = Vec::new();
    let options = cases[0].options.clone();
    for case in cases {
        stores.push(case.store);
        held.push(Box::new((case.server, case._held)));
    }
    Case {
        remote,
        options,
        store: Store::All(stores),
        server: None,
        _held: Some(Box::new(held)),
    }
}

fn tiers_of(remotes: Vec<(Arc<dyn Remote>, bool)>) -> Arc<dyn Remote> {
    let tier = |(remote, writes)| Tier {
        remote,
        writes,
        patience: Duration::from_secs(60),
    };
    let tiers = remotes.into_iter().map(tier).collect();
    let (runner, clock) = (Arc::new(Spawner), SystemClock::shared());
    Arc::new(Tiers::new(tiers, runner, clock, "tiers:".to_owned()))
}

pub(super) fn tiers(cases: Vec<Case>) -> Case {
    let written = |case: &Case| (behind(case.remote.clone()), true);
    let remote = tiers_of(cases.iter().map(written).collect());
    joined(remote, cases)
}

pub(super) fn below_read_only(upper: Case, lower: Case) -> Case {
    let remote = tiers_of(vec![
        (behind(upper.remote), false),
        (behind(lower.remote.clone()), true),
    ]);
    Case { remote, ..lower }
}

pub(super) fn shards(cases: Vec<Case>) -> Case {
    let shard = |(n, case): (usize, &Case)| Shard {
        name: n.to_string(),
        weight: 1.0,
        remote: behind(case.remote.clone()),
    };
    let shards = cases.iter().enumerate().map(shard).collect();
    let remote = Arc::new(Shards::new(shards, "{...}".to_owned()));
    joined(remote, cases)
}
