//! A bug in a handler or in a remote costs the call that met it, and never the mount.
//!
//! The mount is in this process: only so can the test put bugs into its parts.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use cachedirfs::fuse::{FuseFs, Hands, Passthrough};
use fuser::Session;

use crate::support::mounted::is_mounted;
use crate::support::oracle::{Push, Shape};
use crate::support::rig::{PATIENCE, Rig};
use crate::support::{wait_until, workspace};

#[test]
fn a_handler_that_panics_answers_eio_and_the_mount_goes_on() {
    let rig = Rig::new();
    let workspace = workspace();
    let mount_point = workspace.path().join("mnt");
    fs::create_dir(&mount_point).unwrap();
    let passthrough = Arc::new(Passthrough::new(Some("a test".into())));
    let hands = Arc::new(Hands::new(1).unwrap());
    let file_system = FuseFs::new(rig.fs.clone(), passthrough, hands, Arc::default());
    let session = Session::new(file_system, &mount_point, &fuser::Config::default()).unwrap();
    let session = thread::spawn(move || session.run());
    // The answer is a little ahead of the count.
    let count_panics = |panics| {
        let counted = || rig.stats.snapshot().panics == panics;
        wait_until("panics are counted", PATIENCE, counted);
    };
    let lookup = |push: Push| fs::metadata(mount_point.join(push.entry()));
    let errno = |push: Push| lookup(push).unwrap_err().raw_os_error();

    Push(1).perform(&mount_point, Shape::Uuid).unwrap();
    assert_eq!(errno(Push(2)), Some(libc::ENOENT));
    count_panics(0);

    rig.clock_bug.store(true, Ordering::SeqCst);
    assert_eq!(errno(Push(3)), Some(libc::EIO));
    assert_eq!(errno(Push(4)), Some(libc::EIO));
    rig.clock_bug.store(false, Ordering::SeqCst);
    count_panics(2);
    assert_eq!(errno(Push(3)), Some(libc::ENOENT));

    rig.wire.set_bug(true);
    assert_eq!(
        errno(Push(5)),
        Some(libc::ENOENT),
        "a fetch that panics is a miss"
    );
    rig.wire.set_bug(false);
    count_panics(3);

    assert_eq!(Push(1).fault(&mount_point), None);
    Push(6).perform(&mount_point, Shape::Directory).unwrap();
    assert_eq!(Push(6).fault(&mount_point), None);
    count_panics(3);

    wait_until("it can be unmounted", PATIENCE, || {
        !is_mounted(&mount_point) || cachedirfs::sys::unmount(&mount_point, false).is_ok()
    });
    session.join().unwrap().unwrap();
}
