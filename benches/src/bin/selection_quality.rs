//! Microbenchmark `selection-quality` alone; flags as for `kvist bench selection-quality`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("selection-quality")
}
