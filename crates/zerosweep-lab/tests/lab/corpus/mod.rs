//! What the fuzz targets `xentrace` and `script` (`fuzz/`) found worth keeping, and what is near
//! it.

#[path = "../../../../../fuzz/corpus.rs"]
mod files;
mod scripts;
mod traces;

#[test]
fn traces_are_read() {
    let told = files::each("xentrace", traces::check, |input| input.escape_ascii().to_string());
    println!("{told}");
}

#[test]
fn scripts_are_done() {
    let told =
        files::each("script", scripts::check, |input| String::from_utf8_lossy(input).into_owned());
    println!("{told}");
}
