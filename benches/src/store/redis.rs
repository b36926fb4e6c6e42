//! A Redis server of our own, without persistence, over a socket of this machine. The client is
//! the shortest there can be: it writes blocks from the caller's memory and reads them into it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::Error;

use super::case::Tier;
use super::case::{Case, Op};
use super::subject::Subject;

/// A running server with its directory.
pub(super) struct Server {
    child: Child,
    port: u16,
    socket: PathBuf,
    version: String,
}

impl Server {
    /// Starts `redis-server` on a free port; an error says why there is none.
    pub(super) fn start(dir: &Path) -> Result<Server, Error> {
        let program = "redis-server";
        let version = Command::new(program).arg("--version").output();
        let version = version.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::subject("redis", "redis-server is not installed"),
            _ => Error::io("starting redis-server")(e),
        })?;
        let text = String::from_utf8_lossy(&version.stdout).into_owned();
        let version = text.split("v=").nth(1).and_then(|v| v.split(' ').next()).unwrap_or("?");
        let dir = dir.join("redis");
        std::fs::create_dir(&dir).map_err(Error::io(format!("making {}", dir.display())))?;
        let socket = socket_path(&dir);
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
        let port = free.map_err(Error::io("finding a free port"))?.port();
        let mut command = Command::new(program);
        die_with_us(&mut command);
        let child = command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "no", "--daemonize", "no", "--loglevel", "warning"])
            .arg("--dir")
            .arg(&dir)
            .arg("--unixsocket")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::io("starting redis-server"))?;
        let server = Server { child, port, socket, version: version.to_owned() };
        server.wait().map_err(Error::io("waiting for redis-server"))?;
        Ok(server)
    }

    fn wait(&self) -> io::Result<()> {
        let since = Instant::now();
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(_) => return Ok(()),
                Err(e) if since.elapsed() > Duration::from_secs(10) => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// A client over TCP or over the Unix socket.
    pub(super) fn client(&self, tcp: bool) -> Result<Redis, Error> {
        let wire = if tcp { self.tcp() } else { self.unix() };
        let wire = wire.map_err(Error::io("connecting to redis-server"))?;
        let name = format!("redis {}, {}", self.version, if tcp { "tcp" } else { "unix" });
        Ok(Redis { name, wire: BufReader::new(wire) })
    }

    fn tcp(&self) -> io::Result<Box<dyn Wire>> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    fn unix(&self) -> io::Result<Box<dyn Wire>> {
        Ok(Box::new(UnixStream::connect(&self.socket)?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It holds random numbers only.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// An interrupted run must not leave a server behind.
fn die_with_us(command: &mut Command) {
    let ask = || Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: between fork and exec, one system call and nothing else.
    unsafe { command.pre_exec(ask) };
}

/// A socket's path has room for 107 bytes.
fn socket_path(dir: &Path) -> PathBuf {
    let near = dir.join("socket");
    if near.as_os_str().len() < 100 {
        return near;
    }
    std::env::temp_dir().join(format!("kvist-bench-redis-{}", std::process::id()))
}

trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

/// A client.
pub(super) struct Redis {
    name: String,
    wire: BufReader<Box<dyn Wire>>,
}

impl Redis {
    /// One line of an answer without its type and end.
    fn line(&mut self, kind: char) -> io::Result<String> {
        let mut line = String::new();
        self.wire.read_line(&mut line)?;
        let text = line.trim_end().strip_prefix(kind);
        text.map(str::to_owned).ok_or_else(|| io::Error::other(format!("answered {line:?}")))
    }

    fn clear_all(&mut self) -> io::Result<()> {
        self.wire.get_mut().write_all(b"*2\r\n$8\r\nFLUSHALL\r\n$4\r\nSYNC\r\n")?;
        self.line('+').map(drop)
    }

    fn set(&mut self, key: u64, block: &[u8]) -> io::Result<()> {
        let head = format!("*3\r\n$3\r\nSET\r\n$16\r\n{key:016x}\r\n${}\r\n", block.len());
        let to = self.wire.get_mut();
        to.write_all(head.as_bytes())?;
        to.write_all(block)?;
        to.write_all(b"\r\n")?;
        self.line('+').map(drop)
    }

    fn fetch(&mut self, keys: &[u64], into: &mut [u8]) -> io::Result<()> {
        let mut ask = String::new();
        for key in keys {
            ask += &format!("*2\r\n$3\r\nGET\r\n$16\r\n{key:016x}\r\n");
        }
        self.wire.get_mut().write_all(ask.as_bytes())?;
        for into in into.chunks_mut(into.len() / keys.len().max(1)) {
            let len = self.line('$')?;
            if len != into.len().to_string() {
                return Err(io::Error::other(format!("a value of {len} bytes")));
            }
            self.wire.read_exact(into)?;
            self.wire.read_exact(&mut [0; 2])?;
        }
        Ok(())
    }
}

impl Subject for Redis {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn can(&self, case: &Case) -> bool {
        matches!(case.op, Op::HostPut | Op::HostGet)
    }

    fn clear(&mut self, _: usize) -> Result<(), Error> {
        self.clear_all().map_err(Error::io("clearing redis"))
    }

    fn put(&mut self, _: Tier, key: u64, block: &[u8]) -> Result<(), Error> {
        self.set(key, block).map_err(Error::io("storing in redis"))
    }

    fn settle(&mut self, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn chill(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn get(&mut self, _: Tier, keys: &[u64], into: &mut [u8]) -> Result<(), Error> {
        self.fetch(keys, into).map_err(Error::io("fetching from redis"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::Plan;
    use super::super::measure::{Data, measure};
    use super::super::place::Place;
    use super::*;
    use crate::Options;

    #[test]
    fn a_server_keeps_what_it_is_given_over_both_sockets() {
        let place = Place::new(&Options::default()).unwrap();
        // Where Redis is not installed, there is nothing to test.
        let Ok(server) = Server::start(place.path()) else { return };
        let dir = place.path().to_owned();
        let plan = Plan { bytes: 1 << 20, dir, repeats: Some(1), least: 1, seconds: 0.1 };
        let mut data = Data::new(&plan).unwrap();
        for tcp in [false, true] {
            let mut redis = server.client(tcp).unwrap();
            let case = Case { batch: 4, ..Case::of_size(64 << 10)[1] };
            let figure = measure(&mut redis, &case, &plan, &mut data, &mut |_| Ok(1.0));
            assert!(figure.unwrap().1.median > 0.0);
            assert!(redis.get(Tier::Host, &[1 << 40], &mut [0; 8]).is_err());
        }
    }
}
