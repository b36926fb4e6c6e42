//! Microbenchmark `attend` alone; flags as for `kvist bench attend`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("attend")
}
