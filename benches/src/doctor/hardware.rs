//! The machine that a store would run on. Reads what the system says, loads nothing.

use std::fs;
use std::path::{Path, PathBuf};

use kvist::vfs::Vfs;
use kvist_kernels::Isa;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::finding::Findings;
use crate::Machine;
use crate::text::bytes;

/// What was found of the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Hardware {
    /// CPU, cores, instruction-set level, load.
    #[serde(flatten)]
    pub machine: Machine,
    /// The level that the CPU has; `isa` is lower where `KVIST_ISA` says so.
    pub isa_detected: &'static str,
    /// Instruction sets of the CPU that matter here, as the system names them.
    pub features: Vec<String>,
    /// Memory.
    pub memory: Memory,
    /// Most bytes that a process may lock in memory; `None` without a limit.
    pub locked_bytes_max: Option<u64>,
    /// Most open files of a process; `None` without a limit.
    pub open_files_max: Option<u64>,
    /// What carries out reads and writes: `io_uring`, or `threads` where that is refused.
    pub engine: &'static str,
    /// GPU, driver, libraries.
    pub gpu: Gpu,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Of the machine.
    pub total: u64,
    /// That can be had without swapping.
    pub available: u64,
    /// That the control group of this process may use, if it has a limit.
    pub limit: Option<u64>,
    /// That the control group uses, caches that can be dropped left out.
    pub limit_used: Option<u64>,
    /// Huge pages that are reserved and free. kvist uses transparent ones, which need no reservation.
    pub huge_free: u64,
}

impl Memory {
    /// That a new store can have.
    #[must_use]
    pub fn free(&self) -> u64 {
        let room = self.limit.map(|limit| limit.saturating_sub(self.limit_used.unwrap_or(0)));
        room.map_or(self.available, |room| room.min(self.available))
    }

    /// That there is at all.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.limit.map_or(self.total, |limit| limit.min(self.total))
    }
}

/// NVIDIA GPUs and what is needed to use them. Files only: no library is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// GPUs that this process may open.
    pub devices: usize,
    /// The kernel driver's version.
    pub driver: Option<String>,
    /// The driver's library.
    pub libcuda: Option<PathBuf>,
    /// The run-time compiler's library.
    pub libnvrtc: Option<PathBuf>,
}

/// Flags of `/proc/cpuinfo` that kernels use, or that readers look for.
const FEATURES: [&str; 14] = [
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
];

/// Folders that a loader searches, beside `LD_LIBRARY_PATH`.
const LIBRARIES: [&str; 9] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/lib/wsl/lib",
    "usr/local/nvidia/lib64",
    "usr/local/cuda/lib64",
    "usr/local/cuda/targets/x86_64-linux/lib",
    "usr/local/lib",
];

impl Hardware {
    pub(super) fn detect(vfs: &dyn Vfs) -> Hardware {
        let root = Path::new("/");
        let search = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let search: Vec<PathBuf> = std::env::split_paths(&search).collect();
        Hardware {
            machine: Machine::detect(None),
            isa_detected: Isa::detected().name(),
            features: features(&read(root, "proc/cpuinfo")),
            memory: memory(root),
            locked_bytes_max: getrlimit(Resource::Memlock).current,
            open_files_max: getrlimit(Resource::Nofile).current,
            engine: vfs.name(),
            gpu: gpu(root, &search),
        }
    }

    /// Judges it for a store with so much memory.
    pub(super) fn judge(&self, host_bytes: Option<u64>, out: &mut Findings) {
        let machine = &self.machine;
        out.ok("machine", format!("{} cores, kernels for {}", machine.cores, machine.isa));
        if machine.isa != self.isa_detected {
            let text = format!("KVIST_ISA={} while the CPU has {}", machine.isa, self.isa_detected);
            out.warn("machine", text, "unset KVIST_ISA");
        } else if machine.isa == Isa::Generic.name() {
            let text = "no instruction set that the fast kernels need (AVX2 at least)";
            out.warn("machine", text, "copies and reads are not slower; codec and attention are");
        }
        if machine.load > machine.cores as f64 {
            let text = format!(
                "others are at work (load {:.1} on {} cores): figures below are too low",
                machine.load, machine.cores
            );
            out.warn("machine", text, "measure again on an idle machine");
        }
        match self.engine {
            "io_uring" => out.ok("machine", "reads and writes go through io_uring"),
            other => {
                let text = format!("io_uring is refused here: {other} do its work");
                let advice = "it works, with more system calls; containers allow io_uring by a \
                              seccomp profile, kernels by kernel.io_uring_disabled=0";
                out.warn("machine", text, advice);
            }
        }
        if machine.huge_pages == "never" {
            let advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            out.warn("machine", "transparent huge pages are off: memory is slower", advice);
        }
        if self.gpu.devices > 0 {
            let text = "an NVIDIA GPU is here; this version of kvist stores and computes on CPUs";
            out.ok("machine", text);
        }
        if let Some(host) = host_bytes {
            self.judge_memory(host, out);
        }
    }

    fn judge_memory(&self, host: u64, out: &mut Findings) {
        let (most, free) = (self.memory.most(), self.memory.free());
        let whose = if self.memory.limit.is_some_and(|l| l <= self.memory.total) {
            "the control group allows"
        } else {
            "the machine has"
        };
        if host > most {
            let text = format!("host_bytes is {}, {whose} {}", bytes(host), bytes(most));
            let advice = format!("set host_bytes to {} or less", bytes(free));
            out.error("machine", text, &advice);
        } else if host > free {
            let text = format!("host_bytes is {}, free are {}", bytes(host), bytes(free));
            let advice =
                "memory is taken as it fills: the process would be killed or swap; set less";
            out.warn("machine", text, advice);
        } else {
            out.ok("machine", format!("host_bytes {} of {} free", bytes(host), bytes(free)));
        }
    }
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_default()
}

fn features(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"));
    let all: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    FEATURES.iter().filter(|f| all.contains(f)).map(|&f| f.to_owned()).collect()
}

fn memory(root: &Path) -> Memory {
    let info = read(root, "proc/meminfo");
    let kib = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next() == Some(name));
        line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse::<u64>().ok())
    };
    let size = |name| kib(name).unwrap_or(0) << 10;
    let huge = kib("HugePages_Free").unwrap_or(0) * size("Hugepagesize");
    let (limit, limit_used) = group_limit(root).map_or((None, None), |(l, u)| (Some(l), Some(u)));
    let (total, available) = (size("MemTotal"), size("MemAvailable"));
    Memory { total, available, limit, limit_used, huge_free: huge }
}

/// The tightest memory limit of the control groups above this process, and what counts against it.
fn group_limit(root: &Path) -> Option<(u64, u64)> {
    let groups = read(root, "proc/self/cgroup");
    let mut tightest: Option<(u64, u64)> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, kinds, path) = (parts.next(), parts.next()?, parts.next()?);
        let (mount, limit, used) = match kinds {
            "" => ("sys/fs/cgroup", "memory.max", "memory.current"),
            k if k.split(',').any(|k| k == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let top = root.join(mount);
        // A container sees its own group as the root, under a path that is not there.
        let below = Path::new(path.trim_start_matches('/')).ancestors();
        for folder in below.map(|p| top.join(p)) {
            let number = |name: &str| -> Option<u64> { read(&folder, name).trim().parse().ok() };
            // "No limit" is a word in one version and a huge number in the other.
            let Some(max) = number(limit).filter(|&n| n < 1 << 60) else { continue };
            if tightest.is_none_or(|(before, _)| max < before) {
                let stat = read(&folder, "memory.stat");
                let line = stat.lines().find_map(|l| l.strip_prefix("inactive_file "));
                let cache = line.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
                tightest = Some((max, number(used).unwrap_or(0).saturating_sub(cache)));
            }
        }
    }
    tightest
}

fn gpu(root: &Path, search: &[PathBuf]) -> Gpu {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    };
    let is_device = |name: &String| {
        name.strip_prefix("nvidia")
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let library = |stem: &str| {
        let folders = search.iter().cloned().chain(LIBRARIES.map(|l| root.join(l)));
        folders.into_iter().find_map(|folder| {
            let name = names(&folder).into_iter().find(|n| n.starts_with(stem))?;
            Some(folder.join(name))
        })
    };
    let version = read(root, "proc/driver/nvidia/version");
    let number =
        |word: &&str| word.contains('.') && word.bytes().next().is_some_and(|b| b.is_ascii_digit());
    Gpu {
        devices: names(&root.join("dev")).iter().filter(|n| is_device(n)).count(),
        driver: version
            .lines()
            .next()
            .and_then(|l| l.split_whitespace().find(number))
            .map(str::to_owned),
        libcuda: library("libcuda.so"),
        libnvrtc: library("libnvrtc.so"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Folder;
    use super::*;

    #[test]
    fn features_are_whole_words() {
        let info = "processor : 0\nflags\t\t: fpu avx2 avx512f_not amx_tile avx512_bf16\n";
        assert_eq!(features(info), ["avx2", "avx512_bf16", "amx_tile"]);
        assert!(features("").is_empty());
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = Folder::new("groups");
        root.write(
            "proc/meminfo",
            "MemTotal: 1000 kB\nMemAvailable: 900 kB\nHugePages_Free: 2\nHugepagesize: 2048 kB\n",
        );
        let none = memory(&root.0);
        assert_eq!((none.total, none.limit, none.huge_free), (1000 << 10, None, 4 << 20));
        assert_eq!((none.most(), none.free()), (1000 << 10, 900 << 10));

        root.write("proc/self/cgroup", "0::/a/b\n");
        root.write("sys/fs/cgroup/a/memory.max", "500000\n");
        root.write("sys/fs/cgroup/a/memory.current", "300000\n");
        root.write("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 100000\n");
        root.write("sys/fs/cgroup/a/b/memory.max", "max\n");
        let found = memory(&root.0);
        assert_eq!((found.limit, found.limit_used), (Some(500_000), Some(200_000)));
        assert_eq!((found.most(), found.free()), (500_000, 300_000));

        root.write("proc/self/cgroup", "3:cpu,memory:/gone\n");
        root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "400000\n");
        root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n");
        let found = memory(&root.0);
        assert_eq!((found.limit, found.free()), (Some(400_000), 0));
        root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(memory(&root.0).limit, None);
    }

    #[test]
    fn a_gpu_is_what_its_files_say() {
        let root = Folder::new("gpu");
        assert_eq!(gpu(&root.0, &[]), Gpu::default());
        for device in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
            root.write(&format!("dev/{device}"), "");
        }
        let line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5\n";
        root.write("proc/driver/nvidia/version", line);
        root.write("usr/lib64/libcuda.so.1", "");
        root.write("mine/libnvrtc.so.12", "");
        let found = gpu(&root.0, &[root.0.join("mine")]);
        assert_eq!((found.devices, found.driver.as_deref()), (2, Some("550.54.15")));
        assert_eq!(found.libcuda, Some(root.0.join("usr/lib64/libcuda.so.1")));
        assert_eq!(found.libnvrtc, Some(root.0.join("mine/libnvrtc.so.12")));
    }

    #[test]
    fn memory_is_judged_by_what_there_is() {
        let vfs = kvist::vfs::OsVfs::new(kvist::vfs::Engine::Threads).unwrap();
        let mut hardware = Hardware::detect(&vfs);
        hardware.memory = Memory {
            total: 8 << 30,
            available: 4 << 30,
            limit: Some(6 << 30),
            ..Memory::default()
        };
        let judged = |host| {
            let mut out = Findings::default();
            hardware.judge_memory(host, &mut out);
            (out.0[0].level.name(), out.0[0].text.clone())
        };
        assert_eq!(judged(1 << 30).0, "ok");
        assert_eq!(judged(5 << 30).0, "warning");
        let expected = "host_bytes is 7.0 GiB, the control group allows 6.0 GiB".to_owned();
        assert_eq!(judged(7 << 30), ("error", expected));
    }
}
