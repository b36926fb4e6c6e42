//! Microbenchmark `score` alone; flags as for `kvist bench score`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("score")
}
