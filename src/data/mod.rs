//! From records in files to batches of tokens.
