//! Microbenchmark `select` alone; flags as for `kvist bench select`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("select")
}
