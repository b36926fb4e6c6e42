//! The seam where a store plugs in.

use crate::Error;

use super::case::{Case, Tier};

/// A store under measurement. Blocks are named by numbers, and all blocks between two calls of
/// [`Subject::clear`] have one size.
///
/// What is timed: `put` and `settle` for puts, `get` for gets. Never timed: `clear` and `chill`.
pub trait Subject {
    /// Name of the row, with its version.
    fn name(&self) -> String;

    /// Whether this store does such a thing at all.
    fn can(&self, case: &Case) -> bool;

    /// Forgets every block and makes ready for blocks of `size` bytes. What the store keeps for
    /// reuse (arenas, files) it may keep.
    ///
    /// # Errors
    /// What the store says.
    fn clear(&mut self, size: usize) -> Result<(), Error>;

    /// Stores one block; when it returns, the caller may overwrite its memory.
    ///
    /// # Errors
    /// What the store says.
    fn put(&mut self, tier: Tier, key: u64, block: &[u8]) -> Result<(), Error>;

    /// Returns when every block put so far has been written: handed to the system, or, if
    /// `durable`, so that it survives a loss of power.
    ///
    /// # Errors
    /// What the store says.
    fn settle(&mut self, durable: bool) -> Result<(), Error>;

    /// Drops every copy in memory of blocks that are on disk, the system's page cache included.
    ///
    /// # Errors
    /// What the store says.
    fn chill(&mut self) -> Result<(), Error>;

    /// Fetches blocks into the caller's memory: the first at the beginning of `into`, and so on.
    ///
    /// # Errors
    /// What the store says; a block that is missing is an error.
    fn get(&mut self, tier: Tier, keys: &[u64], into: &mut [u8]) -> Result<(), Error>;
}

/// A map of vectors: the simplest store there is, for tests of the bench itself.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct PlainMemory {
    blocks: std::collections::HashMap<u64, Vec<u8>>,
    /// Spoils what it returns.
    pub(crate) wrong: bool,
}

#[cfg(test)]
impl Subject for PlainMemory {
    fn name(&self) -> String {
        "plain memory".to_owned()
    }

    fn can(&self, _: &Case) -> bool {
        true
    }

    fn clear(&mut self, _: usize) -> Result<(), Error> {
        self.blocks.clear();
        Ok(())
    }

    fn put(&mut self, _: Tier, key: u64, block: &[u8]) -> Result<(), Error> {
        self.blocks.insert(key, block.to_vec());
        Ok(())
    }

    fn settle(&mut self, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn chill(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn get(&mut self, _: Tier, keys: &[u64], into: &mut [u8]) -> Result<(), Error> {
        for (key, into) in keys.iter().zip(into.chunks_mut(into.len() / keys.len())) {
            let block = self.blocks.get(key).ok_or_else(|| Error::subject("memory", "a miss"))?;
            into.copy_from_slice(block);
            into[0] ^= u8::from(self.wrong);
        }
        Ok(())
    }
}
