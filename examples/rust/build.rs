//! Compiles the model with irc and links it. Cargo runs this again when a file that irc read has changed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let irc = env::var("IRC").unwrap_or_else(|_| "irc".into());
    let digits = Path::new("../digits");
    let (folder, depfile) = (out.join("digits"), out.join("digits.d"));
    let status = Command::new(&irc)
        .arg("compile")
        .arg(digits.join("digits.onnx"))
        .args(["--name", "digits", "--preset", "speed", "--quiet"])
        .arg("--calibration")
        .arg(digits.join("digits_calibration.npz"))
        .args(["--target", &target(&irc)])
        .arg("-o")
        .arg(&folder)
        .arg("--depfile")
        .arg(&depfile)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("irc compile: {status}; what is wrong stands above"),
        Err(error) => panic!("{irc} cannot be run ({error}): activate its environment, or set IRC to its path"),
    }

    println!("cargo:rustc-link-search=native={}", folder.join("lib").display());
    println!("cargo:rustc-link-lib=static=digits");
    println!("cargo:rustc-link-lib=m");
    println!("cargo:rustc-env=DIGITS_WORKSPACE_BYTES={}", constant(&folder, "DIGITS_WORKSPACE_BYTES"));
    println!("cargo:rustc-env=DIGITS_INTERFACE={}", constant(&folder, "DIGITS_INTERFACE"));
    println!("cargo:rerun-if-env-changed=IRC");
    println!("cargo:rerun-if-changed=build.rs");
    for file in prerequisites(&depfile) {
        println!("cargo:rerun-if-changed={file}");
    }
}

/// irc's name for Cargo's target: this machine's when it is the same.
fn target(irc: &str) -> String {
    let (host, target) = (env::var("HOST").unwrap(), env::var("TARGET").unwrap());
    if host == target {
        return "native".into();
    }
    let found = Command::new(irc).arg("targets").arg(format!("--for={target}")).output().expect("irc targets");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8(found.stdout).unwrap().trim().into()
}

/// A number that the C header defines.
fn constant(folder: &Path, name: &str) -> u64 {
    let header = fs::read_to_string(folder.join("include/digits.h")).unwrap();
    let line = header.lines().find(|line| line.starts_with(&format!("#define {name} "))).unwrap();
    let value = line.split(' ').nth(2).unwrap().trim_end_matches('U');
    match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
        None => value.parse().unwrap(),
    }
}

/// The files in the depfile's first rule: one on each line after that of the target, escaped for make.
fn prerequisites(depfile: &Path) -> Vec<String> {
    let text = fs::read_to_string(depfile).unwrap();
    let rule = text.split("\n\n").next().unwrap().to_owned();
    let plain = |name: &str| name.replace("\\ ", " ").replace("\\#", "#").replace("$$", "$");
    rule.lines().skip(1).map(|line| plain(line.trim_end_matches('\\').trim())).collect()
}
