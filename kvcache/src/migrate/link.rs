//! What messages travel over: a link in process, or any stream of bytes.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// A way to the other side: ordered, without gaps, and it tells when the other side is gone. A link may
/// stay open for many migrations, one after the other.
///
/// Calls block. Whoever wants limits sets them below (`set_read_timeout` of a socket): an error of any
/// kind ends the migration.
pub trait Link {
    /// Sends a whole message. May take its buffer and leave another one, whose content is of no account.
    ///
    /// # Errors
    /// Those of the way; the message may have arrived nevertheless.
    fn send(&mut self, message: &mut Vec<u8>) -> io::Result<()>;

    /// Fills `into` with the next bytes.
    ///
    /// # Errors
    /// Those of the way; [`io::ErrorKind::UnexpectedEof`] if the other side is gone.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<()>;
}

impl<L: Link + ?Sized> Link for &mut L {
    fn send(&mut self, message: &mut Vec<u8>) -> io::Result<()> {
        (**self).send(message)
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        (**self).receive(into)
    }
}

/// A link over streams of bytes, blocking ones: sockets, pipes. For a socket: `Stream::new(&s, &s)`.
#[derive(Debug)]
pub struct Stream<R, W> {
    reader: R,
    writer: W,
}

impl<R: Read, W: Write> Stream<R, W> {
    /// A link that reads from one and writes to the other.
    pub fn new(reader: R, writer: W) -> Stream<R, W> {
        Stream { reader, writer }
    }
}

impl<R: Read, W: Write> Link for Stream<R, W> {
    fn send(&mut self, message: &mut Vec<u8>) -> io::Result<()> {
        self.writer.write_all(message)?;
        self.writer.flush()
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(into)
    }
}

/// Messages on their way at once, each way.
const IN_FLIGHT: usize = 4;

/// One end of a link between two threads of a process. Dropping it tells the other end.
#[derive(Debug)]
pub struct Local {
    to: SyncSender<Vec<u8>>,
    from: Receiver<Vec<u8>>,
    /// Buffers that the other end is done with, and where ours go back to.
    empty: Receiver<Vec<u8>>,
    done: SyncSender<Vec<u8>>,
    /// The message that is being read, and how far.
    current: Vec<u8>,
    at: usize,
}

/// The two ends of a link in process.
#[must_use]
pub fn local() -> (Local, Local) {
    let ((a_to, b_from), (b_to, a_from)) = (sync_channel(IN_FLIGHT), sync_channel(IN_FLIGHT));
    let ((a_done, b_empty), (b_done, a_empty)) = (sync_channel(IN_FLIGHT), sync_channel(IN_FLIGHT));
    let end = |to, from, empty, done| Local { to, from, empty, done, current: Vec::new(), at: 0 };
    (end(a_to, a_from, a_empty, a_done), end(b_to, b_from, b_empty, b_done))
}

impl Link for Local {
    fn send(&mut self, message: &mut Vec<u8>) -> io::Result<()> {
        let next = self.empty.try_recv().unwrap_or_default();
        let full = std::mem::replace(message, next);
        self.to.send(full).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut rest = into;
        while !rest.is_empty() {
            if self.at == self.current.len() {
                let gone = |_| io::Error::from(io::ErrorKind::UnexpectedEof);
                let read = std::mem::replace(&mut self.current, self.from.recv().map_err(gone)?);
                self.at = 0;
                // A buffer that nobody waits for is let go.
                let _ = self.done.try_send(read);
            }
            let n = rest.len().min(self.current.len() - self.at);
            let (now, later) = rest.split_at_mut(n);
            now.copy_from_slice(&self.current[self.at..self.at + n]);
            (rest, self.at) = (later, self.at + n);
        }
        Ok(())
    }
}
