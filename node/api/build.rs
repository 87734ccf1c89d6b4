//! Tests with the original's command line are compiled in where it is installed, and shown as ignored elsewhere.

fn main() {
    println!("cargo:rerun-if-env-changed=QUORATE_VENV");
    println!("cargo:rustc-check-cfg=cfg(has_cfy)");
    if std::env::var_os("QUORATE_VENV").is_some_and(|venv| !venv.is_empty()) {
        println!("cargo:rustc-cfg=has_cfy");
    }
}
