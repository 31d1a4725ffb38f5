//! Work on several things at a time, while they are found.
//!
//! This module does not know what the work is.

use std::thread;

/// Runs `work` on threads for everything that `list` hands out; it hands out no faster than they take.
pub(super) fn in_parallel<T: Send, E>(
    threads: usize,
    work: impl Fn(T) + Sync,
    list: impl FnOnce(&mut dyn FnMut(T) -> bool) -> Result<(), E>,
) -> Result<(), E> {
    let (send, receive) = crossbeam_channel::bounded::<T>(threads * 4);
    thread::scope(|scope| {
        for _ in 0..threads {
            let (receive, work) = (receive.clone(), &work);
            scope.spawn(move || receive.iter().for_each(work));
        }
        // Otherwise nobody would notice that all who receive are gone.
        drop(receive);
        let listed = list(&mut |item| send.send(item).is_ok());
        drop(send);
        listed
    })
}
