//! Shares of a tier that tenants have for sure, and at most.

use crate::Error;

/// Part of a tier's room that a tenant has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// What others cannot take from it, 0 to 1. Default 0.
    pub floor: f64,
    /// What it cannot have more than, `floor` to 1. Default 1.
    pub ceiling: f64,
}

impl Default for Share {
    fn default() -> Share {
        Share { floor: 0.0, ceiling: 1.0 }
    }
}

impl Share {
    /// # Errors
    /// [`Error::Setting`] if it is not `0 <= floor <= ceiling <= 1`.
    pub fn check(&self) -> Result<(), Error> {
        let Share { floor, ceiling } = *self;
        match 0.0 <= floor && floor <= ceiling && ceiling <= 1.0 {
            true => Ok(()),
            false => Err(Error::setting(
                "share of a tenant",
                "floor and ceiling",
                "0 <= floor <= ceiling <= 1",
                format!("{floor} and {ceiling}"),
            )),
        }
    }
}

/// The blocks that a part of the room holds.
pub(super) fn blocks(share: f64, capacity: usize) -> usize {
    (share * capacity as f64) as usize
}
