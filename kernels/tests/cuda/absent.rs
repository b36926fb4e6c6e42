//! A machine with neither driver nor compiler: every way in says so, and nothing panics.

use std::sync::Arc;

use kvist_kernels::cuda::{Cache, Compiler, Device, Error, Nvrtc, driver, probe};

use crate::fakes::{KERNEL, NO_MACROS, child, shop};

#[test]
fn without_a_driver_everything_says_so() {
    // Whatever the machine has, this is found first, and is no library.
    let (_keep, at) = shop(|at| {
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::fs::write(at.join(name), "no library").unwrap();
        }
    });
    child("absent::without_a_driver_everything_says_so", &at, &[], || {
        let missing = |e: Error| {
            assert!(matches!(&e, Error::NoDriver { .. }), "{e:?}");
            assert!(e.to_string().contains("install driver 525 or newer"), "{e}");
        };
        missing(driver().unwrap_err());
        missing(probe().driver.unwrap_err());
        let compiler = Arc::new(Compiler::new(Cache::new(None, 0), Vec::new()));
        missing(Device::open(0, compiler).unwrap_err());
    });
}

#[test]
fn without_a_compiler_it_says_what_was_tried() {
    let test = "absent::without_a_compiler_it_says_what_was_tried";
    // Whatever the machine has, these are found first, and are no libraries.
    let (_keep, at) = shop(|at| {
        std::fs::create_dir(at.join("first")).unwrap();
        for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"] {
            std::fs::write(at.join("first").join(name), "no library").unwrap();
        }
    });
    let (first, missing) = (at.join("first"), at.join("missing"));
    for named in [missing.to_str().unwrap(), at.to_str().unwrap(), ""] {
        let variables = [("KVIST_NVRTC", named), ("LD_LIBRARY_PATH", first.to_str().unwrap())];
        child(test, &at, &variables, || {
            let e = Nvrtc::find().unwrap_err();
            let Error::NoCompiler { tried } = &e else { panic!("{e:?}") };
            assert!(tried.contains("libnvrtc.so.12"), "{tried}");
            let named = std::env::var("KVIST_NVRTC").unwrap();
            if named.ends_with("missing") {
                assert!(tried.contains(&named), "{tried}");
            } else if !named.is_empty() {
                assert!(tried.contains("KVIST_NVRTC: no libnvrtc.so.13 in the folder"), "{tried}");
            }
            assert!(e.to_string().contains("pip install nvidia-cuda-nvrtc"));
            let compiler = Compiler::new(Cache::new(None, 0), Vec::new());
            assert_eq!(compiler.image(&KERNEL.with(NO_MACROS), 80).unwrap_err(), e);
            assert_eq!(probe().compiler.unwrap_err(), e);
        });
    }
}
