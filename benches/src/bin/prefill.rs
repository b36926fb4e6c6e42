//! Microbenchmark `prefill` alone; flags as for `kvist bench prefill`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("prefill")
}
