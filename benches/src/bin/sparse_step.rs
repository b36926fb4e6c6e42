//! Microbenchmark `sparse-step` alone; flags as for `kvist bench sparse-step`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("sparse-step")
}
