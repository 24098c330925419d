//! Backends panic where a driver is missing or a kernel does not compile: here that becomes a message.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Mutex, PoisonError};

/// Messages since the last call: a device's own thread panics first, and with the reason.
static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn take() -> Vec<String> {
    std::mem::take(&mut *MESSAGES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `work` without panics on stderr, of any thread.
///
/// # Errors
/// The message of the first panic, if it panics.
pub(super) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let (result, messages) = recording(|| catch_unwind(AssertUnwindSafe(work)));
    result.map_err(|_| messages.into_iter().next().unwrap_or_else(|| "it panicked without a message".into()))
}

/// Runs `work`, and gives the messages of panics meanwhile, of any thread, instead of printing them.
pub(super) fn recording<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    let hook = take_hook();
    take();
    set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("without a message").to_owned();
        MESSAGES.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }));
    let result = work();
    set_hook(hook);
    (result, take())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_that_of_another_thread_first() {
        assert_eq!(quietly(|| 3), Ok(3));
        let other = || std::thread::spawn(|| panic!("no driver")).join().expect("the device's thread");
        assert_eq!(quietly(other), Err("no driver".into()));
    }
}
