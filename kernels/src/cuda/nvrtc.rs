//! NVRTC, CUDA's run-time compiler: bound function by function to the library that was found.
//!
//! cudarc binds it, too, but to the first library that the loader knows by name, and panics where a
//! function is missing; here the library is the one that [`super::library`] chose.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::os::unix::{Library, Symbol};

use super::{Error, Found, Image, Specialisation, Target, Usage, Version, library};

type Status = c_int;
type Handle = *mut c_void;
type Strings = *const *const c_char;

const SUCCESS: Status = 0;

/// The functions that are used, as the header of NVRTC 12 and 13 declares them.
#[derive(Clone, Copy)]
struct Api {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    arch_count: unsafe extern "C" fn(*mut c_int) -> Status,
    archs: unsafe extern "C" fn(*mut c_int) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        Strings,
        Strings,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Handle) -> Status,
    compile: unsafe extern "C" fn(Handle, c_int, Strings) -> Status,
    log_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    log: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    ptx_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    ptx: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
}

impl Api {
    fn load(library: &Library) -> Result<Api, String> {
        // SAFETY: in each line the type is that of NVRTC's header for this name.
        unsafe {
            Ok(Api {
                version: symbol(library, "nvrtcVersion")?,
                arch_count: symbol(library, "nvrtcGetNumSupportedArchs")?,
                archs: symbol(library, "nvrtcGetSupportedArchs")?,
                error: symbol(library, "nvrtcGetErrorString")?,
                create: symbol(library, "nvrtcCreateProgram")?,
                destroy: symbol(library, "nvrtcDestroyProgram")?,
                compile: symbol(library, "nvrtcCompileProgram")?,
                log_size: symbol(library, "nvrtcGetProgramLogSize")?,
                log: symbol(library, "nvrtcGetProgramLog")?,
                cubin_size: symbol(library, "nvrtcGetCUBINSize")?,
                cubin: symbol(library, "nvrtcGetCUBIN")?,
                ptx_size: symbol(library, "nvrtcGetPTXSize")?,
                ptx: symbol(library, "nvrtcGetPTX")?,
            })
        }
    }
}

/// # Safety
/// `T` is the type of this function.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller knows the type.
    let found: Result<Symbol<T>, _> = unsafe { library.get(name) };
    found.map(|f| *f).map_err(|_| format!("has no {name}"))
}

/// The compiler. Calls may be made from several threads at once.
#[derive(Clone)]
pub struct Nvrtc {
    api: Api,
    version: Version,
    archs: Vec<u32>,
    file: PathBuf,
    found: Found,
}

/// What the compiler made.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The code.
    pub image: Image,
    /// What each entry point takes; empty for PTX, whose registers the driver assigns.
    pub usage: Vec<Usage>,
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVRTC {} at {}", self.version, self.file.display())
    }
}

impl Nvrtc {
    /// The first usable one: loaded already, named by `KVIST_NVRTC`, in a folder of [`super::search_in`],
    /// by the system's loader. It stays loaded.
    ///
    /// # Errors
    /// [`Error::NoCompiler`] with all that was tried.
    pub fn find() -> Result<Nvrtc, Error> {
        library::find()
    }

    pub(super) fn bind(library: &Library, found: Found) -> Result<Nvrtc, String> {
        let api = Api::load(library)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to integers of this frame.
        if unsafe { (api.version)(&raw mut major, &raw mut minor) } != SUCCESS {
            return Err("does not tell its version".to_owned());
        }
        if !(12..=13).contains(&major) {
            return Err(format!("is version {major}.{minor}, expected 12 or 13"));
        }
        let version = Version { major: major.unsigned_abs(), minor: minor.unsigned_abs() };
        let archs = archs(&api)?;
        let file = library::file_of(api.version as *const c_void).unwrap_or_default();
        Ok(Nvrtc { api, version, archs, file, found })
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The architectures that it knows: ten times the compute capability, ascending.
    #[must_use]
    pub fn archs(&self) -> &[u32] {
        &self.archs
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// How it was found.
    #[must_use]
    pub fn found(&self) -> Found {
        self.found
    }

    /// Compiles a kernel.
    ///
    /// # Errors
    /// [`Error::CompileFailed`] with the compiler's log.
    pub fn compile(&self, of: &Specialisation, target: Target) -> Result<Compiled, Error> {
        let failed = |log: String| Error::CompileFailed { kernel: of.to_string(), target, log };
        let program = Program::new(self.api, of).map_err(failed)?;
        let log = program.compile(&of.options(target)).map_err(failed)?;
        let ptx = matches!(target, Target::Ptx(_));
        let (size, bytes) = match ptx {
            true => (self.api.ptx_size, self.api.ptx),
            false => (self.api.cubin_size, self.api.cubin),
        };
        let code = program.bytes(size, bytes).map_err(failed)?;
        let image = Image { ptx, compiler: self.version, code };
        if !image.is_code() {
            return Err(failed(format!("{} bytes came out, and no code\n{log}", image.code.len())));
        }
        let usage = if ptx { Vec::new() } else { Usage::parse(&log) };
        Ok(Compiled { image, usage })
    }
}

fn archs(api: &Api) -> Result<Vec<u32>, String> {
    let mut count = 0;
    // SAFETY: points to an integer of this frame.
    if unsafe { (api.arch_count)(&raw mut count) } != SUCCESS || !(1..=1000).contains(&count) {
        return Err("does not tell its architectures".to_owned());
    }
    let mut archs = vec![0; count.unsigned_abs() as usize];
    // SAFETY: room for as many as it said.
    if unsafe { (api.archs)(archs.as_mut_ptr()) } != SUCCESS {
        return Err("does not tell its architectures".to_owned());
    }
    let mut archs: Vec<u32> = archs.into_iter().filter_map(|a| u32::try_from(a).ok()).collect();
    archs.sort_unstable();
    Ok(archs)
}

/// One source inside the compiler.
struct Program {
    api: Api,
    handle: Handle,
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed once.
        unsafe { (self.api.destroy)(&raw mut self.handle) };
    }
}

impl Program {
    fn new(api: Api, of: &Specialisation) -> Result<Program, String> {
        let kernel = of.kernel();
        let (source, name) = (text(kernel.source)?, text(kernel.name)?);
        let headers = texts(kernel.headers.iter().map(|h| h.text))?;
        let names = texts(kernel.headers.iter().map(|h| h.name))?;
        let (header_ptrs, name_ptrs) = (pointers(&headers), pointers(&names));
        let mut handle = ptr::null_mut();
        // SAFETY: C strings and arrays of them, with their number; NVRTC copies what it keeps.
        let status = unsafe {
            (api.create)(
                &raw mut handle,
                source.as_ptr(),
                name.as_ptr(),
                c_int::try_from(headers.len()).unwrap_or(c_int::MAX),
                header_ptrs.as_ptr(),
                name_ptrs.as_ptr(),
            )
        };
        if status == SUCCESS { Ok(Program { api, handle }) } else { Err(words(&api, status)) }
    }

    /// Compiles; the log either way.
    fn compile(&self, options: &[String]) -> Result<String, String> {
        let options = texts(options.iter().map(String::as_str))?;
        let pointers = pointers(&options);
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: a live program; C strings with their number.
        let status = unsafe { (self.api.compile)(self.handle, count, pointers.as_ptr()) };
        let log = self.bytes(self.api.log_size, self.api.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
        match status {
            SUCCESS => Ok(log),
            status => Err(format!("{}\n{log}", words(&self.api, status))),
        }
    }

    fn bytes(
        &self,
        size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
        copy: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: a live program; points to an integer of this frame.
        let status = unsafe { size(self.handle, &raw mut len) };
        if status != SUCCESS {
            return Err(words(&self.api, status));
        }
        let mut out = vec![0_u8; len];
        // SAFETY: room for as many bytes as it said.
        let status = unsafe { copy(self.handle, out.as_mut_ptr().cast()) };
        if status == SUCCESS { Ok(out) } else { Err(words(&self.api, status)) }
    }
}

fn words(api: &Api, status: Status) -> String {
    // SAFETY: any number may be asked for; the answer is a constant of the library, or null.
    let words = unsafe { (api.error)(status) };
    if words.is_null() {
        return format!("status {status}");
    }
    // SAFETY: not null, a C string that lives as long as the library, which is never closed.
    unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
}

fn text(of: &str) -> Result<CString, String> {
    CString::new(of).map_err(|_| "a zero byte in a source or macro".to_owned())
}

fn texts<'a>(of: impl Iterator<Item = &'a str>) -> Result<Vec<CString>, String> {
    of.map(text).collect()
}

fn pointers(of: &[CString]) -> Vec<*const c_char> {
    of.iter().map(|text| text.as_ptr()).collect()
}
