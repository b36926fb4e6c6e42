//! Bugs that can be seeded, to prove that the tests would find them (`make mutants`). `bug!("name")`
//! is `false` but in a build with `--cfg kvist_bugs`, where it is true for the one in `KVIST_BUG`.

#[cfg(not(kvist_bugs))]
macro_rules! bug {
    ($name:literal) => {
        false
    };
}

#[cfg(kvist_bugs)]
macro_rules! bug {
    ($name:literal) => {
        $crate::bugs::is($name)
    };
}

#[cfg(kvist_bugs)]
pub(crate) fn is(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("KVIST_BUG").ok()).as_deref() == Some(name)
}
