//! The Python binding of kvist, module `kvist._kvist`: arguments in, the GIL released, one call into
//! the library, results and errors out. The public package around it is `python/kvist`.

mod cache;
mod cuda;
mod device;
mod dlpack;
mod drafts;
mod error;
mod info;
mod kernels;
mod loading;
mod named;
mod number;
mod prefill;
mod prefix;
mod profile;
mod select;
mod sequence;

use pyo3::prelude::*;

/// Runs the `kvist` command line (`args[0]` is the program's name) and returns its exit status.
#[pyfunction]
fn run_cli(py: Python, args: Vec<String>) -> u8 {
    py.detach(|| kvist_cli::run(args))
}

#[pymodule]
mod _kvist {
    #[pymodule_export]
    use super::cache::PyCache;
    #[pymodule_export]
    use super::cuda::{cuda_folders, cuda_json};
    #[pymodule_export]
    use super::dlpack::Buffer;
    #[pymodule_export]
    use super::drafts::PyView;
    #[pymodule_export]
    use super::info::PyAttendInfo;
    #[pymodule_export]
    use super::kernels::attend::{attend_pages, attend_slots, merge};
    #[pymodule_export]
    use super::kernels::score::Summary;
    #[pymodule_export]
    use super::kernels::select::{top_k, top_p};
    #[pymodule_export]
    use super::loading::PyLoading;
    #[pymodule_export]
    use super::prefill::{PyPrefill, prefill_presets};
    #[pymodule_export]
    use super::prefix::inspect::{inspect_json, verify_json, why_json};
    #[pymodule_export]
    use super::prefix::lease::PyLease;
    #[pymodule_export]
    use super::prefix::pinned::PyPinned;
    #[pymodule_export]
    use super::prefix::space::{PyPrefix, PySpace};
    #[pymodule_export]
    use super::prefix::store::PyPrefixStore;
    #[pymodule_export]
    use super::prefix::ticket::PyTicket;
    #[pymodule_export]
    use super::profile::{_calibrate, PyProfile};
    #[pymodule_export]
    use super::run_cli;
    #[pymodule_export]
    use super::select::{PySelect, parse_bytes, selection, selection_presets};
    #[pymodule_export]
    use super::sequence::PySequence;
    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
