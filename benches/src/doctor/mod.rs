//! Before a store is switched on: is the machine fit for it, the directory, how fast are the links, and
//! what would a model gain? Nothing is changed; what is measured on disk is a file without a name.

mod cuda;
mod directory;
mod disk;
mod finding;
mod gain;
mod gguf;
mod hardware;
mod links;
mod model;
mod scratch;
mod volume;

use std::path::PathBuf;
use std::sync::Arc;

use kvist::vfs::{Engine, OsVfs, Vfs};
use kvist_kernels::DType;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use cuda::{Cuda, CudaCompiler, CudaDevice};
pub use directory::{Contents, Directory};
pub use finding::{Finding, Level};
pub use gain::{Gain, SESSION_TOKENS, Way};
pub use hardware::{Gpu, Hardware, Memory};
pub use links::Link;
pub use model::Model;
pub use volume::Volume;

use crate::Error;
use finding::Findings;

/// Version of the report's schema: fields may be added to it, never taken away.
const SCHEMA: u32 = 1;
/// Seconds of measuring, and quickly.
const SECONDS: f64 = 5.0;
const SECONDS_QUICK: f64 = 1.0;
/// Bytes of the scratch file at most, and quickly; never more than this part of the free space.
const FILE: u64 = 128 << 20;
const FILE_QUICK: u64 = 32 << 20;
const FREE_SHARE: u64 = 4;
/// Bytes of a block where no model is known.
const BLOCK: usize = 1 << 20;

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store's directory, if it is to have one.
    pub dir: Option<PathBuf>,
    /// Whether others may write to it.
    pub allow_shared_dir: bool,
    /// Whether whoever opens the store makes missing directories above it; a store does not.
    pub parents_made: bool,
    /// The store's memory.
    pub host_bytes: Option<u64>,
    /// The most bytes of its files.
    pub disk_bytes: Option<u64>,
    /// The model.
    pub model: Option<Model>,
    /// Tokens of a block: the engine's block size.
    pub block_tokens: u32,
    /// Tokens that the engine computes in a second of prefill.
    pub prefill_rate: Option<f64>,
    /// A second of measuring in place of five; records that are there already are not looked at.
    pub quick: bool,
    /// What somebody who knows the engine has found.
    pub host: Option<Host>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            dir: None,
            allow_shared_dir: false,
            parents_made: false,
            host_bytes: None,
            disk_bytes: None,
            model: None,
            block_tokens: 16,
            prefill_rate: None,
            quick: false,
            host: None,
        }
    }
}

/// What was found of an engine by somebody who knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// What is to be known of it, in order.
    pub facts: Vec<Fact>,
    /// What is right and wrong.
    pub findings: Vec<Finding>,
}

/// Something to be known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// What.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this schema.
    pub schema: u32,
    /// The worst finding.
    pub verdict: Level,
    /// Findings of that level.
    pub errors: usize,
    /// Findings of that level.
    pub warnings: usize,
    /// The engine, if one was named.
    pub host: Option<Host>,
    /// The machine.
    pub machine: Hardware,
    /// What it has for kernels on GPUs.
    pub cuda: Cuda,
    /// The directory, if one was named.
    pub directory: Option<Directory>,
    /// What was measured.
    pub links: Vec<Link>,
    /// The model, if one was named.
    pub model: Option<Model>,
    /// What it would gain.
    pub gain: Option<Gain>,
    /// The verdict, line by line.
    pub findings: Vec<Finding>,
}

/// Looks at everything and measures. Progress is told in words.
///
/// # Errors
/// [`Error`] if options make no sense or the machine cannot be measured at all. What is wrong with
/// machine, directory or settings is a finding.
pub fn doctor(options: &Options, progress: impl Fn(&str)) -> Result<Report, Error> {
    let engine = OsVfs::new(Engine::Auto).map_err(Error::io("starting the disk tier's engine"))?;
    examine(&(Arc::new(engine) as Arc<dyn Vfs>), options, progress)
}

/// [`doctor`] over any file system.
fn examine(
    vfs: &Arc<dyn Vfs>,
    options: &Options,
    progress: impl Fn(&str),
) -> Result<Report, Error> {
    check(options)?;
    let mut out = Findings::default();
    if let Some(host) = &options.host {
        out.0.extend(host.findings.iter().cloned());
    }
    let machine = Hardware::detect(&**vfs);
    machine.judge(options.host_bytes, &mut out);
    let cuda = Cuda::probe();
    cuda.judge(machine.gpu.devices, &mut out);
    let mut directory = None;
    let mut ground = None;
    if let Some(dir) = &options.dir {
        progress("looking at the directory");
        let (mut found, at) = Directory::look(vfs, dir, options, &mut out);
        found.volume = at.as_deref().and_then(|at| Volume::of(at).ok());
        if let Some(volume) = &found.volume {
            let own = found.store.as_ref().map_or(0, |s| s.file_bytes);
            volume.judge(options.disk_bytes, own, &mut out);
        }
        (directory, ground) = (Some(found), at);
    }
    let mut links = measure_memory(options, &progress)?;
    let made_up = links.1;
    if let (Some(at), Some(found)) = (&ground, &mut directory) {
        progress("measuring the disk");
        found.direct_alignment = measure_disk(vfs, at, options, found, &mut links.0, &mut out);
    }
    let seen = directory.as_ref().and_then(|d| d.store.as_ref()?.lossless_ratio);
    let ratio = seen.map(|r| (r, "directory")).or(made_up.map(|r| (r, "made_up")));
    let gain = options.model.as_ref().and_then(|model| {
        let known = gain::Known {
            model,
            block_tokens: options.block_tokens,
            links: &links.0,
            ratio,
            prefill: options.prefill_rate,
            host_bytes: options.host_bytes,
            disk_bytes: options.disk_bytes,
        };
        Gain::of(&known)
    });
    match (&options.model, &gain) {
        (Some(model), Some(gain)) => {
            for text in &model.assumed {
                out.warn("model", text.clone(), "give --geometry if that is not so");
            }
            gain.judge(model, &mut out);
        }
        _ => out.ok("gain", "not told without a model: name one with --model or --geometry"),
    }
    let count = |level| out.0.iter().filter(|f| f.level == level).count();
    Ok(Report {
        schema: SCHEMA,
        verdict: out.0.iter().map(|f| f.level).max().unwrap_or(Level::Ok),
        errors: count(Level::Error),
        warnings: count(Level::Warning),
        host: options.host.clone(),
        machine,
        cuda,
        directory,
        links: links.0,
        model: options.model.clone(),
        gain,
        findings: out.0,
    })
}

fn check(options: &Options) -> Result<(), Error> {
    let bad = |flag: &str, expected: &str, found: String| Error::BadValue {
        flag: flag.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    if let Some(rate) = options.prefill_rate.filter(|&r| !(r > 0.0 && r < 1e12)) {
        return Err(bad("prefill-rate", "tokens per second above 0", rate.to_string()));
    }
    if !(1..=4096).contains(&options.block_tokens) {
        return Err(bad("block-tokens", "1 to 4096", options.block_tokens.to_string()));
    }
    for (flag, bytes) in [("host-bytes", options.host_bytes), ("disk-bytes", options.disk_bytes)] {
        if bytes == Some(0) {
            return Err(bad(flag, "more than 0 bytes", "0".to_owned()));
        }
    }
    if options.disk_bytes.is_some() && options.dir.is_none() {
        return Err(bad("disk-bytes", "a directory with it", "none".to_owned()));
    }
    Ok(())
}

fn seconds(options: &Options) -> f64 {
    if options.quick { SECONDS_QUICK } else { SECONDS }
}

fn block_bytes(options: &Options) -> usize {
    let of = |m: &Model| m.token_bytes().saturating_mul(u64::from(options.block_tokens));
    options.model.as_ref().map_or(BLOCK, |m| usize::try_from(of(m)).unwrap_or(usize::MAX))
}

/// Links of memory, and the ratio of the lossless codec on made-up numbers.
fn measure_memory(
    options: &Options,
    progress: impl Fn(&str),
) -> Result<(Vec<Link>, Option<f64>), Error> {
    progress("measuring memory and codec");
    let slice = seconds(options) / 4.0;
    let mut links = links::memory(block_bytes(options), slice)?;
    // Other types are not made smaller.
    let shape = match &options.model {
        Some(m) => m.dtype.kernel().map(|d| (d, options.block_tokens as usize, m.dim_k as usize)),
        None => Some((DType::Bf16, links::TILE.0, links::TILE.1)),
    };
    let Some((dtype, tokens, dim)) = shape else { return Ok((links, None)) };
    let coded = links::decoding(dtype, tokens, dim, slice / 2.0)?;
    links.push(coded.link);
    Ok((links, Some(coded.ratio)))
}

/// Adds the links of the disk; what its transfers must be aligned to.
fn measure_disk(
    vfs: &Arc<dyn Vfs>,
    at: &std::path::Path,
    options: &Options,
    found: &Directory,
    links: &mut Vec<Link>,
    out: &mut Findings,
) -> Option<usize> {
    let most = if options.quick { FILE_QUICK } else { FILE };
    let free = found.volume.as_ref().map_or(u64::MAX, |v| v.free_bytes / FREE_SHARE);
    let plan = disk::Plan {
        block: block_bytes(options),
        most: most.min(free),
        seconds: seconds(options) / 1.6,
    };
    match disk::measure(vfs, at, plan) {
        Ok(measured) => {
            match measured.direct {
                Some(n) => {
                    out.ok("links", format!("transfers past the page cache, aligned to {n} bytes"))
                }
                None => {
                    let text = "no transfers past the page cache here (O_DIRECT): what is read takes \
                                memory twice, and the reads below were not cold";
                    out.warn("links", text, "name a directory on a local ext4 or xfs file system");
                }
            }
            links.extend(measured.links);
            measured.direct
        }
        Err(e) => {
            let text = format!("measuring in {} failed: {e}", at.display());
            out.error("links", text, advice(e.kind()));
            None
        }
    }
}

fn advice(kind: std::io::ErrorKind) -> &'static str {
    use std::io::ErrorKind as Kind;
    match kind {
        Kind::StorageFull => "free some space: a store could write nothing here",
        Kind::QuotaExceeded => "the quota is used up: raise it or free some space",
        Kind::PermissionDenied => "let the user that runs the engine write there",
        Kind::ReadOnlyFilesystem => "name a directory that can be written",
        Kind::TimedOut => "the disk does not answer: look at it before anything else",
        Kind::FileTooLarge => "raise the limit of file sizes (ulimit -f)",
        _ => "a store would meet the same error: mend that first",
    }
}

#[cfg(test)]
mod tests {
    use kvist::vfs::sim::{Call, Fault, SimVfs, Trigger};

    use super::scratch::Folder;
    use super::*;

    fn options(dir: &str) -> Options {
        Options { dir: Some(dir.into()), quick: true, ..Options::default() }
    }

    fn of(report: &Report, level: Level) -> Vec<&str> {
        let found = report.findings.iter().filter(|f| f.level == level);
        found.map(|f| f.text.as_str()).collect()
    }

    #[test]
    fn a_report_has_everything_and_leaves_nothing() {
        let folder = Folder::new("report");
        let model = Model::parse("2,1,64,bf16").unwrap();
        let host = Host {
            name: "engine".to_owned(),
            facts: vec![Fact { name: "version".to_owned(), value: "1".into() }],
            findings: vec![Finding {
                level: Level::Warning,
                about: "settings".to_owned(),
                text: "odd".to_owned(),
                advice: String::new(),
            }],
        };
        let options = Options {
            model: Some(model),
            host_bytes: Some(1 << 20),
            disk_bytes: Some(1 << 20),
            prefill_rate: Some(1000.0),
            host: Some(host),
            ..options(folder.0.to_str().unwrap())
        };
        let steps = std::cell::RefCell::new(Vec::new());
        let report = doctor(&options, |step| steps.borrow_mut().push(step.to_owned())).unwrap();
        assert_eq!(steps.borrow().len(), 3);
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
        assert_eq!(report.links.len(), 7);
        assert_eq!(report.gain.as_ref().unwrap().ways.len(), 3);
        assert!(report.findings[0].text == "odd" && report.warnings >= 1);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"].as_array().unwrap().len(), report.findings.len());
        assert_eq!(json["model"]["dtype"], "bf16");
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for (options, word) in [
            (Options { prefill_rate: Some(0.0), ..options("/d") }, "prefill-rate"),
            (Options { prefill_rate: Some(f64::NAN), ..options("/d") }, "prefill-rate"),
            (Options { block_tokens: 0, ..options("/d") }, "block-tokens"),
            (Options { host_bytes: Some(0), ..options("/d") }, "host-bytes"),
            (Options { disk_bytes: Some(1), ..Options::default() }, "disk-bytes"),
        ] {
            let e = doctor(&options, |_| {}).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        }
    }

    #[test]
    fn a_disk_that_fails_is_a_finding_and_the_rest_is_told() {
        let sim = SimVfs::new(1);
        let vfs: Arc<dyn Vfs> = Arc::new(sim.clone());
        let dir = vfs.open_dir("/doctor-sim".as_ref(), true).unwrap();
        for (fault, call, word) in [
            (Fault::CreateQuota, Call::Create, "quota"),
            (Fault::WriteNoSpace, Call::Write, "free some space"),
            (Fault::WriteTooBig, Call::Write, "ulimit"),
            (Fault::Denied, Call::Create, "let the user"),
            (Fault::ReadIo, Call::Read, "same error"),
        ] {
            sim.inject(fault, Trigger::from(1).on(call).named(".kvist-doctor"));
            let report = examine(&vfs, &options("/doctor-sim"), |_| {}).unwrap();
            sim.heal();
            assert_eq!((report.verdict, report.links.len()), (Level::Error, 3), "{fault:?}");
            let failed = report.findings.iter().find(|f| f.level == Level::Error).unwrap();
            assert!(failed.about == "links" && failed.advice.contains(word), "{failed:?}");
            assert!(dir.list().unwrap().is_empty());
        }
        let report = examine(&vfs, &options("/doctor-sim"), |_| {}).unwrap();
        assert!(of(&report, Level::Error).is_empty(), "{:?}", report.findings);
        assert_eq!(report.directory.unwrap().direct_alignment, Some(512));
    }
}
