//! The `kvist` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(kvist_cli::run(std::env::args_os()))
}
