//! What a server could have said of its sessions, told from how the trace goes on.

use std::collections::HashMap;

use super::trace::Trace;

/// Marks the requests after which the last two blocks of their chain are never used again: their session is
/// closed. One in so many marks is wrong, either way, so that `accuracy` of them are right.
pub(super) fn close_sessions(trace: &mut Trace, accuracy: f64) {
    let mut last = HashMap::<u64, usize>::new();
    for (i, request) in trace.requests.iter().enumerate() {
        last.extend(request.blocks.iter().map(|&block| (block, i)));
    }
    for (i, request) in trace.requests.iter_mut().enumerate() {
        let tail = &request.blocks[request.blocks.len().saturating_sub(2)..];
        let over = !tail.is_empty() && tail.iter().all(|block| last[block] == i);
        // The same ones are wrong whatever is replayed.
        let draw = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
        let right = (draw as f64 / (1u64 << 53) as f64) < accuracy;
        request.closed = over == right && !tail.is_empty();
    }
}
