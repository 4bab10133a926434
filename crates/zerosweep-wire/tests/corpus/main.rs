//! What the fuzz target `wire` (`fuzz/`) found worth keeping, and what is near it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod check;
#[path = "../../../../fuzz/corpus.rs"]
mod corpus;

#[test]
fn the_corpus_is_read() {
    let told = corpus::each("wire", check::connection, |input| input.escape_ascii().to_string());
    println!("{told}");
}
