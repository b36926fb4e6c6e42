//! Microbenchmark `page-layout` alone; flags as for `kvist bench page-layout`.

fn main() -> std::process::ExitCode {
    kvist_bench::main_for("page-layout")
}
