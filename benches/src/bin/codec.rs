//! Microbenchmark `codec` alone; flags as for `kvist bench codec`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("codec")
}
