//! Microbenchmark `cluster` alone; flags as for `kvist bench cluster`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("cluster")
}
