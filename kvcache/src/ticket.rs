//! A handle on work that goes on: it can be polled, awaited, waited for and cancelled.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::sync::{Arc, Condvar, Mutex};

/// Work in the background and its result. Dropping the ticket cancels the work if it has not begun;
/// memory that the kernel still uses is kept until it lets go.
pub struct Ticket<T> {
    shared: Arc<Shared<T>>,
}

/// The worker's end of a ticket.
pub(crate) struct Promise<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    done: Condvar,
}

struct State<T> {
    result: Option<T>,
    began: Instant,
    /// How long it took, once it is over.
    took: Option<Duration>,
    cancelled: bool,
    detached: bool,
    waker: Option<Waker>,
}

/// A ticket and its worker's end.
pub(crate) fn ticket<T>() -> (Ticket<T>, Promise<T>) {
    let state = State {
        result: None,
        began: Instant::now(),
        took: None,
        cancelled: false,
        detached: false,
        waker: None,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), done: Condvar::new() });
    (Ticket { shared: shared.clone() }, Promise { shared })
}

impl<T> Ticket<T> {
    /// Whether the result is there, or never will be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.took().is_some()
    }

    /// How long the work took, waiting for its turn included; `None` before it is over.
    #[must_use]
    pub fn took(&self) -> Option<Duration> {
        self.shared.state.lock().took
    }

    /// The result if it comes in time; `None` if not, or if the work was given up.
    #[must_use]
    pub fn wait(self, patience: Duration) -> Option<T> {
        let mut state = self.shared.state.lock();
        if state.took.is_none() {
            self.shared.done.wait_while_for(&mut state, |s| s.took.is_none(), patience);
        }
        state.result.take()
    }

    /// [`Ticket::wait`] that can be repeated: `None` if the result did not come in time, or never will.
    #[must_use]
    pub fn wait_for(&self, patience: Duration) -> Option<T>
    where
        T: Clone,
    {
        let mut state = self.shared.state.lock();
        if state.took.is_none() {
            self.shared.done.wait_while_for(&mut state, |s| s.took.is_none(), patience);
        }
        state.result.clone()
    }

    /// Wakes `waker` when the result is there, or never will be; `false` if that is so now. It takes
    /// the place of an earlier one.
    #[must_use]
    pub fn when_done(&self, waker: Waker) -> bool {
        let mut state = self.shared.state.lock();
        if state.took.is_none() {
            state.waker = Some(waker);
        }
        state.took.is_none()
    }

    /// Lets the work go on without a ticket.
    pub fn detach(self) {
        self.shared.state.lock().detached = true;
    }

    /// Asks the worker to stop where it can.
    pub fn cancel(&self) {
        self.shared.state.lock().cancelled = true;
    }
}

impl<T> Future for Ticket<T> {
    /// `None` if the work was given up.
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.shared.state.lock();
        if state.took.is_some() {
            return Poll::Ready(state.result.take());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.cancelled |= !state.detached;
    }
}

impl<T> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("done", &self.is_done()).finish()
    }
}

impl<T> Promise<T> {
    /// Whether nobody waits for the result any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.shared.state.lock().cancelled
    }

    /// Ends the work.
    pub(crate) fn keep(self, result: T) {
        self.shared.state.lock().result = Some(result);
    }
}

impl<T> Drop for Promise<T> {
    /// Also where the worker panicked: nobody waits for ever.
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.took = Some(state.began.elapsed());
        let waker = state.waker.take();
        drop(state);
        self.shared.done.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_waited_for_awaited_and_given_up() {
        let (a, promise) = ticket();
        assert!(!a.is_done() && a.took().is_none());
        std::thread::spawn(move || promise.keep(7));
        assert_eq!(a.wait(Duration::from_secs(60)), Some(7));
        let (mut b, promise) = ticket::<u32>();
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut b).poll(&mut context).is_pending());
        drop(promise);
        assert_eq!(Pin::new(&mut b).poll(&mut context), Poll::Ready(None));
        let (d, promise) = ticket::<u32>();
        assert_eq!(d.wait_for(Duration::ZERO), None);
        assert!(d.when_done(Waker::noop().clone()) && !promise.is_cancelled());
        promise.keep(8);
        assert!(!d.when_done(Waker::noop().clone()) && d.took().is_some());
        assert_eq!((d.wait_for(Duration::ZERO), d.wait_for(Duration::ZERO)), (Some(8), Some(8)));
        let (e, promise) = ticket::<u32>();
        e.detach();
        assert!(!promise.is_cancelled());
        let (c, promise) = ticket::<u32>();
        assert!(!promise.is_cancelled());
        assert_eq!(c.wait(Duration::ZERO), None);
        assert!(promise.is_cancelled());
    }
}
