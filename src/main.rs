//! The program `mixdistill`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
