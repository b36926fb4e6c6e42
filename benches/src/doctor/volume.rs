//! The file system that a directory lies on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde::Serialize;

use super::finding::Findings;
use crate::text::bytes;

/// What the system says of a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its kind, as `mount` names it; empty if the system does not say.
    pub kind: String,
    /// Where it is mounted.
    pub mounted_at: PathBuf,
    /// The device or server.
    pub source: String,
    /// Whether nothing can be written.
    pub read_only: bool,
    /// Whether it was mounted with quotas: less than `free_bytes` may be granted.
    pub quota: bool,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
    /// Files that can still be made; `None` where there is no such limit.
    pub free_files: Option<u64>,
}

/// Kinds that a server has: another host's delays and failures, and locks that may mean little.
const NETWORK: [&str; 16] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.goofys",
    "fuse.juicefs",
    "glusterfs",
    "fuse.glusterfs",
    "lustre",
    "beegfs",
];
const MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
const LAYERED: [&str; 4] = ["overlay", "aufs", "fuse.fuse-overlayfs", "unionfs"];
/// Files that a store makes in time: segments, sessions, its own few.
const FILES_LEAST: u64 = 1000;

impl Volume {
    /// Of a directory that exists.
    pub(super) fn of(dir: &Path) -> io::Result<Volume> {
        let stat = statvfs(dir)?;
        let dir = dir.canonicalize()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut volume = mounted(&mounts, &dir);
        volume.read_only |= stat.f_flag.contains(StatVfsMountFlags::RDONLY);
        volume.bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
        volume.free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        // Some have no table of files and say 0.
        volume.free_files = (stat.f_files > 0).then_some(stat.f_favail);
        Ok(volume)
    }

    /// Judges it for a store of so many bytes, of which `own` are there already.
    pub(super) fn judge(&self, disk_bytes: Option<u64>, own: u64, out: &mut Findings) {
        let kind = self.kind.as_str();
        let named = match kind {
            "" => "the file system".to_owned(),
            _ => format!("{kind} at {}", self.mounted_at.display()),
        };
        if self.read_only {
            let advice = "remount it writable, or name another directory";
            out.error("directory", format!("{named} is read-only"), advice);
        }
        if MEMORY.contains(&kind) {
            let text = format!(
                "{named} is memory: nothing survives a restart of the machine, and what \
                                is written there is memory taken from the host"
            );
            out.warn(
                "directory",
                text,
                "name a directory on a disk, or give the memory to host_bytes",
            );
        } else if NETWORK.contains(&kind) {
            let text = format!(
                "{named} is another host's ({}): its delays are in every miss and load, \
                                and two hosts may not see each other's lock",
                self.source
            );
            out.warn("directory", text, "use a local disk; give each host a directory of its own");
        } else if LAYERED.contains(&kind) {
            let text = format!("{named} is a container's own layer: it goes with the container");
            out.warn("directory", text, "mount a volume there");
        } else {
            out.ok("directory", format!("{named}, {} free", bytes(self.free_bytes)));
        }
        if self.quota {
            let advice =
                "ask `quota` what is granted; a store that is refused room goes on without it";
            out.warn(
                "directory",
                format!("{named} has quotas: free space may not all be yours"),
                advice,
            );
        }
        if let Some(free) = self.free_files.filter(|&f| f < FILES_LEAST) {
            let text = format!(
                "{named} has room for {free} more files; a store makes about {FILES_LEAST}"
            );
            out.warn("directory", text, "free some inodes");
        }
        if let Some(wanted) = disk_bytes {
            self.judge_room(wanted, own, out);
        }
    }

    fn judge_room(&self, wanted: u64, own: u64, out: &mut Findings) {
        let (room, more) = (self.free_bytes.saturating_add(own), wanted.saturating_sub(own));
        if wanted > room {
            let text =
                format!("disk_bytes is {}, there is room for {}", bytes(wanted), bytes(room));
            let advice =
                format!("set disk_bytes to {} or less, or free some space", bytes(room / 10 * 9));
            out.error("directory", text, &advice);
        } else if more > self.free_bytes / 10 * 9 {
            let text = format!(
                "disk_bytes {} leaves {} free",
                bytes(wanted),
                bytes(self.free_bytes - more)
            );
            out.warn("directory", text, "nearly full file systems are slow: leave a tenth free");
        } else {
            out.ok(
                "directory",
                format!("disk_bytes {} of {} with what is there", bytes(wanted), bytes(room)),
            );
        }
    }
}

/// The mount that a path lies on: the one with the longest path above it, the last of those that hide
/// one another.
fn mounted(mounts: &str, path: &Path) -> Volume {
    let mut found = Volume::default();
    for line in mounts.lines() {
        // `36 35 98:0 /root /mount rw,noatime shared:1 - ext4 /dev/sda rw,usrquota`
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<&str>, Vec<&str>) =
            (left.split(' ').collect(), right.split(' ').collect());
        let (Some(at), Some(flags)) = (left.get(4), left.get(5)) else { continue };
        let [kind, source, options] = right[..] else { continue };
        let at = PathBuf::from(unescaped(at));
        if !path.starts_with(&at) || at.as_os_str().len() < found.mounted_at.as_os_str().len() {
            continue;
        }
        let has = |list: &str, word: fn(&str) -> bool| list.split(',').any(word);
        found = Volume {
            kind: kind.to_owned(),
            mounted_at: at,
            source: unescaped(source),
            read_only: has(flags, |w| w == "ro") || has(options, |w| w == "ro"),
            quota: has(options, |w| w.contains("quota") && w != "noquota"),
            ..Volume::default()
        };
    }
    found
}

/// Blanks and the like are written as `\040`.
fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let code = more.get(..3).and_then(|c| std::str::from_utf8(c).ok());
        match code.and_then(|c| u8::from_str_radix(c, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = &more[3..];
            }
            None => {
                out.push(first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
28 27 0:30 / /home rw - overlay overlay rw,lowerdir=/x
29 28 0:31 / /home/my\\040data rw,nosuid shared:7 master:1 - nfs4 server:/export rw,vers=4.2
30 27 0:32 / /data ro,relatime - xfs /dev/sdb rw,usrquota
31 27 0:33 / /data ro,relatime - tmpfs tmpfs rw,noquota
torn line
";

    fn of(path: &str) -> Volume {
        mounted(MOUNTS, Path::new(path))
    }

    #[test]
    fn the_nearest_mount_counts() {
        assert_eq!(of("/var/cache").kind, "ext4");
        assert_eq!(of("/homely").kind, "ext4");
        assert_eq!(of("/home/x").kind, "overlay");
        let nfs = of("/home/my data/kv");
        assert_eq!((nfs.kind.as_str(), nfs.source.as_str()), ("nfs4", "server:/export"));
        assert!(!nfs.read_only && !nfs.quota);
        let hiding = of("/data/kv");
        assert_eq!((hiding.kind.as_str(), hiding.read_only, hiding.quota), ("tmpfs", true, false));
        let hidden = MOUNTS.lines().take(4).collect::<Vec<_>>().join("\n");
        assert!(mounted(&hidden, Path::new("/data")).quota);
        assert_eq!(mounted("", Path::new("/")), Volume::default());
        assert_eq!(unescaped("a\\04"), "a\\04");
    }

    fn judged(volume: &Volume, wanted: Option<u64>, own: u64) -> Vec<(&'static str, String)> {
        let mut out = Findings::default();
        volume.judge(wanted, own, &mut out);
        out.0.iter().map(|f| (f.level.name(), f.text.clone())).collect()
    }

    #[test]
    fn kinds_that_surprise_are_warned_of() {
        let disk = Volume { free_bytes: 100 << 30, free_files: Some(1 << 20), ..of("/") };
        assert_eq!(judged(&disk, None, 0), [("ok", "ext4 at /, 100.0 GiB free".to_owned())]);
        for (path, word) in
            [("/home/x", "layer"), ("/home/my data", "another host"), ("/data", "memory")]
        {
            let volume = Volume { read_only: false, free_bytes: 100 << 30, ..of(path) };
            let [(level, text)] = &judged(&volume, None, 0)[..] else { panic!("{path}") };
            assert!(*level == "warning" && text.contains(word), "{text}");
        }
        assert!(judged(&of("/data"), None, 0)[0].1.contains("read-only"));
        let few = Volume { free_files: Some(12), ..disk.clone() };
        assert!(judged(&few, None, 0)[1].1.contains("room for 12 more files"));
        let quota = Volume { quota: true, ..disk };
        assert!(judged(&quota, None, 0)[1].1.contains("quotas"));
    }

    #[test]
    fn room_counts_what_the_store_has_already() {
        let volume = Volume { free_bytes: 100, free_files: None, ..of("/") };
        let level = |wanted, own| judged(&volume, Some(wanted), own)[1].0;
        assert_eq!((level(90, 0), level(91, 0), level(101, 0)), ("ok", "warning", "error"));
        assert_eq!((level(140, 50), level(150, 50), level(151, 50)), ("ok", "warning", "error"));
        assert_eq!(level(20, 1000), "ok");
    }
}
