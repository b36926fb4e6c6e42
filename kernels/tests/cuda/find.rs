//! Which compiler is taken, of several.

use std::path::PathBuf;

use kvist_kernels::cuda::{Cache, Compiler, Error, Found, Nvrtc, search_in};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::fakes::{KERNEL, NO_MACROS, child, library, nvrtc, shop};

fn found() -> (Found, String, PathBuf) {
    let nvrtc = Nvrtc::find().unwrap();
    (nvrtc.found(), nvrtc.version().to_string(), nvrtc.file().to_owned())
}

#[test]
fn the_first_of_four_places_is_taken() {
    let (_keep, at) = shop(|at| {
        nvrtc(&at.join("loaded"), "libnvrtc.so.13", 13, 1);
        nvrtc(&at.join("named"), "libnvrtc.so.12", 12, 2);
        nvrtc(&at.join("packages/cu13/lib"), "libnvrtc.so.13", 13, 3);
        nvrtc(&at.join("packages/cuda_nvrtc/lib"), "libnvrtc.so.12", 12, 4);
        nvrtc(&at.join("system"), "libnvrtc.so.12", 12, 5);
        library(
            "fake_nvrtc.c",
            &at.join("named/libnvrtc-builtins.so.12.2"),
            &["MAJOR=1", "MINOR=1"],
        );
    });
    let (system, named) = (at.join("system"), at.join("named"));
    let file = named.join("libnvrtc.so.12");
    let (folder, file) = (named.to_str().unwrap(), file.to_str().unwrap());
    let system = ("LD_LIBRARY_PATH", system.to_str().unwrap());
    let cases: [(&str, &[(&str, &str)]); 5] = [
        ("loaded", &[("KVIST_NVRTC", folder), ("FOLDERS", "1")]),
        ("folder", &[("KVIST_NVRTC", folder), ("FOLDERS", "1")]),
        ("file", &[("KVIST_NVRTC", file), ("FOLDERS", "1")]),
        ("packages", &[("KVIST_NVRTC", "/missing"), ("FOLDERS", "1")]),
        ("system", &[]),
    ];
    for (case, given) in cases {
        let variables = [&[system, ("CASE", case)], given].concat();
        child("find::the_first_of_four_places_is_taken", &at, &variables, || {
            if std::env::var_os("FOLDERS").is_some() {
                let folders = ["missing", "packages/cu13/lib", "packages/cuda_nvrtc/lib"];
                search_in(folders.map(|f| at.join(f)).into());
            }
            let expected = match std::env::var("CASE").unwrap().as_str() {
                "loaded" => {
                    let file = at.join("loaded/libnvrtc.so.13");
                    // SAFETY: a library of this test without initialisers.
                    let open = unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_LOCAL) };
                    let _ = open.unwrap().into_raw();
                    (Found::Loaded, "13.1".to_owned(), file)
                }
                "folder" | "file" => {
                    (Found::Variable, "12.2".to_owned(), at.join("named/libnvrtc.so.12"))
                }
                "packages" => {
                    (Found::Folder, "13.3".to_owned(), at.join("packages/cu13/lib/libnvrtc.so.13"))
                }
                _ => (Found::System, "12.5".to_owned(), at.join("system/libnvrtc.so.12")),
            };
            assert_eq!(found(), expected);
            // It stays where it is: from now on it is one that is loaded.
            assert_eq!((found().0, found().1), (Found::Loaded, expected.1.clone()));
            let builtins = "libnvrtc-builtins.so.12.2";
            let open = std::fs::read_to_string("/proc/self/maps").unwrap().contains(builtins);
            assert_eq!(open, expected.1 == "12.2");
        });
    }
}

#[test]
fn what_is_too_old_or_not_whole_is_passed_over() {
    let (_keep, at) = shop(|at| {
        nvrtc(&at.join("old"), "libnvrtc.so", 11, 8);
        nvrtc(&at.join("new"), "libnvrtc.so", 14, 0);
        let partial = at.join("partial/libnvrtc.so.13");
        library("fake_nvrtc.c", &partial, &["MAJOR=13", "MINOR=0", "PARTIAL"]);
        std::fs::create_dir_all(at.join("torn")).unwrap();
        std::fs::write(at.join("torn/libnvrtc.so.13"), "\x7fELF").unwrap();
        nvrtc(&at.join("good"), "libnvrtc.so.13", 13, 0);
    });
    for good in ["", "good"] {
        let variables = [("GOOD", good)];
        child("find::what_is_too_old_or_not_whole_is_passed_over", &at, &variables, || {
            let mut folders = ["old", "new", "partial", "torn"].map(|f| at.join(f)).to_vec();
            if std::env::var("GOOD").unwrap() == "good" {
                folders.push(at.join("good"));
                search_in(folders);
                assert_eq!(Nvrtc::find().unwrap().file(), at.join("good/libnvrtc.so.13"));
                return;
            }
            search_in(folders);
            let Err(Error::NoCompiler { tried }) = Nvrtc::find() else { panic!("found one") };
            for told in [
                "old/libnvrtc.so: is version 11.8, expected 12 or 13",
                "new/libnvrtc.so: is version 14.0, expected 12 or 13",
                "partial/libnvrtc.so.13: has no nvrtcGetCUBIN",
                "torn/libnvrtc.so.13",
            ] {
                assert!(tried.contains(told), "{told} is not in {tried}");
            }
        });
    }
}

#[test]
fn what_the_compiler_answers_is_checked() {
    let (_keep, at) = shop(|at| {
        nvrtc(at, "libnvrtc.so.12", 12, 4);
    });
    child("find::what_the_compiler_answers_is_checked", &at, &[], || {
        let compiler = Compiler::new(Cache::new(None, 0), Vec::new());
        assert_eq!(compiler.nvrtc().unwrap().archs(), [75, 80, 90]);
        let image = compiler.image(&KERNEL.with(NO_MACROS), 80).unwrap();
        assert_eq!(image.compiler.to_string(), "12.4");
        let kernel = |source| -> &'static _ {
            Box::leak(Box::new(kvist_kernels::cuda::Kernel { source, ..KERNEL }))
        };
        let said = |source| {
            let of = kvist_kernels::cuda::Kernel::with(kernel(source), NO_MACROS);
            compiler.image(&of, 80).unwrap_err().to_string()
        };
        assert!(said("wrong").ends_with("NVRTC_ERROR_COMPILATION\nlog"), "{}", said("wrong"));
        assert!(said("empty").contains("0 bytes came out"), "{}", said("empty"));
    });
}
