//! Two machines and two tiers that are well.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{PATIENCE, held};
use crate::support::mounted::{CACHEDIRFS, Mounted};
use crate::support::scons::Project;
use crate::support::venv::LATEST;
use crate::support::{wait_until, workspace};

fn build(machine: &Mounted, at: &Path) -> crate::support::scons::Build {
    Project::checkout(at.to_owned()).build(LATEST, machine.path(), &["-j8"])
}

/// ccache's table: what nobody has is put everywhere; what the lower one has is put into the upper.
#[test]
fn what_is_built_is_in_both_tiers_and_what_only_the_lower_has_is_promoted() {
    let workspace = workspace();
    let [upper, lower] = ["upper", "lower"].map(|name| workspace.path().join(name));
    let remote = format!("file://{} file://{}", upper.display(), lower.display());
    let a = Mounted::new(&remote);
    build(&a, &workspace.path().join("a")).succeeded();
    a.flush();
    let built = held(&lower);
    assert!(built.len() > 20, "{}", built.len());
    assert_eq!(held(&upper), built);

    fs::remove_dir_all(&upper).unwrap();
    fs::create_dir(&upper).unwrap();
    let b = Mounted::new(&remote);
    build(&b, &workspace.path().join("b")).retrieved_all();
    let fetched = b.counter("fetched");
    wait_until("what was fetched is promoted", PATIENCE, || {
        b.counter("promoted") >= fetched
    });
    assert!(held(&upper).len() as u64 >= fetched && held(&upper).is_subset(&built));
    assert_eq!(b.counter("promotions_dropped"), 0);

    let only_upper = Mounted::with_options(&format!("file://{}", upper.display()), "ro");
    build(&only_upper, &workspace.path().join("c")).succeeded();
    assert!(
        only_upper.counter("fetched") + 1 >= fetched,
        "promoted whole"
    );
}

#[test]
fn a_tier_that_is_read_only_is_never_written() {
    let workspace = workspace();
    let [upper, lower] = ["upper", "lower"].map(|name| workspace.path().join(name));
    fs::create_dir(&upper).unwrap();
    let remote = format!("file://{}|ro file://{}", upper.display(), lower.display());
    let a = Mounted::with_options(&remote, "reshare,touch=1s");
    build(&a, &workspace.path().join("a")).succeeded();
    a.flush();
    assert!(held(&lower).len() > 20);
    let b = Mounted::with_options(&remote, "reshare,touch=1s");
    build(&b, &workspace.path().join("b")).retrieved_all();
    assert_eq!(held(&upper), [].into());
    assert_eq!(b.counter("promoted"), 0);
    let shown = b.command(&["status"], &[]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("upper (ro): ok; had 0 of"), "{shown}");
    assert!(shown.contains("lower (rw): ok; had "), "{shown}");
}

#[test]
fn what_is_corrupt_in_one_tier_comes_from_the_next_and_is_put_right() {
    use super::{Oracle, push};
    let workspace = workspace();
    let [upper, lower] = ["upper", "lower"].map(|name| workspace.path().join(name));
    let remote = format!("file://{} file://{}", upper.display(), lower.display());
    let (a, oracle) = (Mounted::new(&remote), Oracle::default());
    push(&a, &oracle, 1..13);
    a.flush();
    let whole: Vec<_> = held(&upper)
        .iter()
        .map(|sig| upper.join(sig[..2].to_uppercase()).join(sig))
        .map(|path| (fs::read(&path).unwrap(), path))
        .collect();
    for (bytes, path) in &whole {
        let mut bytes = bytes.clone();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let b = Mounted::new(&remote);
    oracle.check(b.path(), "although the upper tier is corrupt");
    wait_until("the upper tier is put right", PATIENCE, || {
        whole
            .iter()
            .all(|(bytes, path)| fs::read(path).unwrap() == *bytes)
    });
    assert_eq!(b.counter("corrupt"), 12);
}

#[test]
fn check_and_verify_try_every_remote() {
    let workspace = workspace();
    let [one, two] = ["one", "two"].map(|name| workspace.path().join(name));
    let remote = format!("file://{}|ro file://{}", one.display(), two.display());
    fs::create_dir(&one).unwrap();
    let run = |command: &str| {
        let output = Command::new(CACHEDIRFS)
            .args([command, &remote])
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
        )
    };
    let (code, said) = run("check");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("checking file://").count(), 2, "{said}");
    assert_eq!(
        (
            said.matches("not tried (ro)").count(),
            said.matches("removed again").count()
        ),
        (1, 1)
    );
    let (code, said) = run("verify");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("0 objects checked").count(), 2, "{said}");
}

#[test]
fn a_single_remote_that_is_read_only_is_not_written_by_anything() {
    use super::{Oracle, Push, Shape, push};
    let workspace = workspace();
    let remote = format!("file://{}", workspace.path().join("remote").display());
    let (a, oracle) = (Mounted::new(&remote), Oracle::default());
    push(&a, &oracle, 1..3);
    a.flush();
    let b = Mounted::with_options(&format!("{remote}|ro"), "reshare,touch=1s");
    oracle.check(b.path(), "read");
    Push(3).perform(b.path(), Shape::Uuid).unwrap();
    assert_eq!(Push(3).fault(b.path()), None, "it is kept here");
    let removed = b.command(&["rm", "--remote"], &[&Push(1).signature()]);
    let said = String::from_utf8(removed.stderr).unwrap();
    assert!(said.contains("|ro"), "{said}");
    assert_eq!(b.status()["push"], "off");
    drop(b);
    let held = held(&workspace.path().join("remote"));
    assert_eq!(held, [1, 2].map(|n| Push(n).signature()).into());
}

#[test]
fn a_divergence_names_the_tier_that_holds_other_content() {
    use super::Push;
    let workspace = workspace();
    let [upper, lower] =
        ["upper", "lower"].map(|name| format!("file://{}/{name}", workspace.path().display()));
    let write = |machine: &Mounted, content: &str| {
        let entry = machine.path().join(Push(1).entry());
        fs::create_dir_all(entry.parent().unwrap()).unwrap();
        fs::write(entry.with_extension("tmp1"), content).unwrap();
        fs::rename(entry.with_extension("tmp1"), entry).unwrap();
        machine.flush();
    };
    let first = Mounted::new(&lower);
    write(&first, "theirs");
    let both = Mounted::new(&format!("{upper} {lower}"));
    write(&both, "ours");
    assert_eq!(both.counter("diverged"), 1);
    let said = format!("differs from what {lower}/ holds");
    assert!(both.log().contains(&said), "{}", both.log());
}
