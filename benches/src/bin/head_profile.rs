//! Microbenchmark `head-profile` alone; flags as for `kvist bench head-profile`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("head-profile")
}
