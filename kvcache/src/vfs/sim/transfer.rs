//! Reads and writes of file data, and what faults make of them.

use std::io;

use super::content::SECTOR;
use super::disk::Ino;
use super::errno::{Errno, error};
use super::fault::Fault;
use super::world::{Handle, State};
use crate::vfs::{Op, Transfer};

impl State {
    /// One transfer of an operation, whose memory is put together first.
    pub(super) fn transfer(
        &mut self,
        handle: &Handle,
        op: &mut Op,
        fault: Option<Fault>,
    ) -> io::Result<usize> {
        if op.inserts.is_empty() {
            let bytes = op.skip..;
            return match op.transfer {
                Transfer::Read => self.read(handle, op.offset, &mut op.buf[bytes], fault),
                Transfer::Write => self.write(handle, op.offset, &op.buf[bytes], fault),
            };
        }
        let stretches = op.stretches();
        let mut bytes = Vec::new();
        for s in &stretches {
            // SAFETY: the operation owns these bytes or shares them with readers.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(s.start, s.len) });
        }
        if op.transfer == Transfer::Write {
            return self.write(handle, op.offset, &bytes, fault);
        }
        let read = self.read(handle, op.offset, &mut bytes, fault);
        let mut from = 0;
        for s in &stretches {
            // SAFETY: the operation owns these bytes, and none is lent: `Op::refusal`.
            let to = unsafe { std::slice::from_raw_parts_mut(s.start, s.len) };
            to.copy_from_slice(&bytes[from..from + s.len]);
            from += s.len;
        }
        read
    }

    /// One `pread`.
    pub(super) fn read(
        &mut self,
        handle: &Handle,
        offset: u64,
        out: &mut [u8],
        fault: Option<Fault>,
    ) -> io::Result<usize> {
        let mut want = out.len();
        match fault {
            Some(Fault::ReadIo) => return Err(error(Errno::Io)),
            Some(Fault::Truncated) => {
                let len = offset + self.rng.below(want as u64);
                self.disk().truncate(handle.ino, len);
            }
            Some(Fault::ShortRead) => want = self.shorten(want, handle.alignment),
            _ => {}
        }
        let Some(file) = self.disk.file(handle.ino) else { return Err(error(Errno::Stale)) };
        let read = file.current.read(offset, &mut out[..want]);
        match fault {
            Some(Fault::BitFlip) if read > 0 => {
                let bit = self.rng.below(read as u64 * 8);
                out[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
            Some(Fault::StaleRead) if read > 0 => {
                self.make_stale(handle.ino, offset, &mut out[..read])
            }
            _ => {}
        }
        self.totals.bytes_read += read as u64;
        Ok(read)
    }

    /// Puts back what one sector of the file, or all, held before.
    fn make_stale(&mut self, ino: Ino, offset: u64, out: &mut [u8]) {
        let all = self.rng.below(4) == 0;
        let sectors = (out.len() as u64).div_ceil(SECTOR);
        let chosen = self.rng.below(sectors);
        let Some(file) = self.disk.file(ino) else { return };
        for (i, sector) in out.chunks_mut(SECTOR as usize).enumerate() {
            if all || i as u64 == chosen {
                let mut old = [0; SECTOR as usize];
                let old = &mut old[..sector.len()];
                file.older.read(offset + i as u64 * SECTOR, old);
                if *old == *sector {
                    old.fill(0);
                }
                sector.copy_from_slice(old);
            }
        }
    }

    /// One `pwrite`.
    pub(super) fn write(
        &mut self,
        handle: &Handle,
        offset: u64,
        data: &[u8],
        fault: Option<Fault>,
    ) -> io::Result<usize> {
        if !handle.writable {
            return Err(error(Errno::BadFile));
        }
        let ino = handle.ino;
        let len = data.len() as u64;
        let mut room = self.room(ino, offset, len)? as usize;
        match fault {
            Some(Fault::WriteIo) => {
                if room as u64 > SECTOR && self.rng.coin() {
                    let part = self.shorten(room, SECTOR as usize);
                    self.disk().write(ino, offset, &data[..part]);
                }
                return Err(error(Errno::Io));
            }
            Some(Fault::WriteZero) => return Ok(0),
            Some(Fault::ShortWrite) => room = room.min(self.shorten(data.len(), handle.alignment)),
            _ => {}
        }
        let data = &data[..room];
        match fault {
            Some(Fault::LostWrite) => {}
            Some(Fault::Misdirected) => {
                let elsewhere = self.elsewhere(ino, offset);
                self.disk().write(ino, elsewhere, data);
            }
            _ if !data.is_empty() => self.disk().write(ino, offset, data),
            _ => {}
        }
        if matches!(fault, Some(Fault::LostWrite | Fault::Misdirected)) {
            self.disk().extend(ino, offset..offset + room as u64);
        }
        self.totals.bytes_written += room as u64;
        Ok(room)
    }

    /// Some of `len` bytes, in whole multiples of `unit`; all if they cannot be divided.
    fn shorten(&mut self, len: usize, unit: usize) -> usize {
        let most = len.saturating_sub(1) / unit;
        if most == 0 { len } else { (1 + self.rng.below(most as u64) as usize) * unit }
    }

    /// Another sector near `offset`, inside the file or a little behind.
    fn elsewhere(&mut self, ino: Ino, offset: u64) -> u64 {
        let len = self.disk.file(ino).map_or(0, |file| file.current.len());
        let sectors = len.max(offset) / SECTOR + 16;
        let chosen = self.rng.below(sectors) * SECTOR;
        if chosen / SECTOR == offset / SECTOR { chosen + SECTOR } else { chosen }
    }

    /// How many of `len` bytes at `offset` the limits allow.
    fn room(&self, ino: Ino, offset: u64, len: u64) -> io::Result<u64> {
        if len == 0 {
            return Ok(0);
        }
        let in_file = self.limits.file.saturating_sub(offset).min(len);
        if in_file == 0 {
            return Err(error(Errno::FileTooBig));
        }
        let in_disk = self.room_on_disk(ino, offset, in_file);
        if in_disk == 0 { Err(error(Errno::NoSpace)) } else { Ok(in_disk) }
    }

    fn room_on_disk(&self, ino: Ino, offset: u64, len: u64) -> u64 {
        let (Some(limit), Some(file)) = (self.limits.disk, self.disk.file(ino)) else { return len };
        let used = self.disk.used(&self.open_inos());
        let fits = |len: u64| {
            let allocated = file.current.allocated();
            let after = allocated + file.current.growth(offset..offset + len);
            used - allocated.max(file.reserved) + after.max(file.reserved) <= limit
        };
        if fits(len) {
            return len;
        }
        // A full disk takes what still fits, in sectors.
        let mut sectors = 0..len / SECTOR;
        while sectors.start < sectors.end {
            let middle = (sectors.start + sectors.end).div_ceil(2);
            if fits(middle * SECTOR) {
                sectors.start = middle;
            } else {
                sectors.end = middle - 1;
            }
        }
        sectors.start * SECTOR
    }

    /// One `fallocate` that keeps the length.
    pub(super) fn allocate(&mut self, handle: &Handle, len: u64) -> io::Result<()> {
        if !self.limits.allocate {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if !handle.writable {
            return Err(error(Errno::BadFile));
        }
        if len > self.limits.file {
            return Err(error(Errno::FileTooBig));
        }
        let Some(file) = self.disk.file(handle.ino) else { return Err(error(Errno::Stale)) };
        let taken = file.current.allocated().max(file.reserved);
        if let Some(limit) = self.limits.disk
            && self.disk.used(&self.open_inos()) - taken + taken.max(len) > limit
        {
            return Err(error(Errno::NoSpace));
        }
        if let Some(file) = self.disk().file_mut(handle.ino) {
            file.reserved = file.reserved.max(len);
        }
        Ok(())
    }

    /// One `ftruncate`.
    pub(super) fn set_len(&mut self, handle: &Handle, len: u64) -> io::Result<()> {
        if !handle.writable {
            return Err(error(Errno::Inval));
        }
        if len > self.limits.file {
            return Err(error(Errno::FileTooBig));
        }
        self.disk().set_len(handle.ino, len);
        Ok(())
    }

    /// One `fdatasync`.
    pub(super) fn sync_data(&mut self, handle: &Handle, fault: Option<Fault>) -> io::Result<()> {
        if fault == Some(Fault::SyncIo) {
            let pending = self.disk.file(handle.ino).map_or(0, |file| file.pending.len());
            let keep = if self.rng.coin() { pending / 2 } else { 0 };
            let forget = self.rng.coin();
            self.disk().fail_sync_file(handle.ino, keep, forget);
            return Err(error(Errno::Io));
        }
        if self.disk.file(handle.ino).is_some_and(|file| !file.pending.is_empty()) {
            self.disk().sync_file(handle.ino);
        }
        self.totals.syncs.push(handle.path.to_string());
        Ok(())
    }

    /// One `fsync` of a directory.
    pub(super) fn sync_dir(&mut self, handle: &Handle, fault: Option<Fault>) -> io::Result<()> {
        if fault == Some(Fault::DirSyncIo) {
            if self.rng.coin() {
                self.disk().drop_entries(handle.ino);
            }
            return Err(error(Errno::Io));
        }
        self.sync_entries(handle.ino);
        self.totals.syncs.push(handle.path.to_string());
        Ok(())
    }

    /// Makes the entries of a directory durable.
    pub(super) fn sync_entries(&mut self, dir: Ino) {
        if self.disk.dir(dir).is_some_and(|dir| !dir.pending.is_empty()) {
            let open = self.open_inos();
            let disk = self.disk();
            disk.sync_dir(dir);
            disk.collect(&open);
        }
    }
}
