//! What every order of replacement does.

use super::nodes::Nodes;

/// Blocks in the order in which they leave.
pub(super) trait Queue {
    /// Adds a block that is in no list.
    fn insert(&mut self, nodes: &mut Nodes, block: u32, capacity: usize);

    /// Notes a use of a block that it holds.
    fn touch(&mut self, nodes: &mut Nodes, block: u32, capacity: usize);

    /// Takes out a block that it holds; with `evicted`, remembering that it was there.
    fn remove(&mut self, nodes: &mut Nodes, block: u32, capacity: usize, evicted: bool);

    /// Goes through the blocks in the order in which they leave, up to the first one for which there is
    /// something: a block that leaves in its place, or itself. It stays until it is removed.
    fn find(
        &mut self,
        nodes: &mut Nodes,
        capacity: usize,
        wanted: &mut dyn FnMut(&Nodes, u32) -> Option<u32>,
    ) -> Option<u32>;

    /// Gives a share of the room to what was used once, where it has such a thing.
    fn set_share(&mut self, _: f32) {}

    /// Blocks in it.
    fn len(&self) -> usize;

    /// Bytes besides those of the blocks.
    fn bytes(&self) -> usize {
        0
    }
}
