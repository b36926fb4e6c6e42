//! What a kernel takes of the GPU, as the assembler says in the compiler's log.

/// Registers, spills and memory of one entry point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The entry point.
    pub entry: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread keeps on its stack.
    pub stack_bytes: u32,
    /// Bytes of registers that a thread writes to memory for want of room.
    pub spill_store_bytes: u32,
    /// Bytes that it reads back.
    pub spill_load_bytes: u32,
    /// Bytes of shared memory that are fixed in the source.
    pub shared_bytes: u32,
}

impl Usage {
    /// All entry points that the log tells of, in its order. Lines that are not known say nothing.
    pub(super) fn parse(log: &str) -> Vec<Usage> {
        let mut all: Vec<Usage> = Vec::new();
        for line in log.lines() {
            if let Some(rest) = line.split_once("Compiling entry function '").map(|(_, rest)| rest)
            {
                let entry = rest.split('\'').next().unwrap_or_default().to_owned();
                all.push(Usage { entry, ..Usage::default() });
            } else if let Some(usage) = all.last_mut() {
                usage.read(line);
            }
        }
        all
    }

    fn read(&mut self, line: &str) {
        if line.contains("bytes stack frame") {
            self.stack_bytes = before(line, " bytes stack frame").unwrap_or(0);
            self.spill_store_bytes = before(line, " bytes spill stores").unwrap_or(0);
            self.spill_load_bytes = before(line, " bytes spill loads").unwrap_or(0);
        } else if let Some(registers) = before(line, " registers") {
            self.registers = registers;
            self.shared_bytes = before(line, " bytes smem").unwrap_or(0);
        }
    }
}

/// The number right before `words`.
fn before(line: &str, words: &str) -> Option<u32> {
    let (head, _) = line.split_once(words)?;
    head.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As NVRTC 13.0 writes it; the second function as 12.x does.
    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'spill' for 'sm_80'
ptxas info    : Function properties for spill
ptxas         .     1528 bytes stack frame, 3052 bytes spill stores, 3060 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 1528 bytes cumulative stack size, 364 bytes cmem[0]
ptxas info    : Compile time = 116.889 ms
ptxas info    : Compiling entry function 'scale' for 'sm_80'
ptxas info    : Function properties for scale
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 1 barriers, 2048 bytes smem, 364 bytes cmem[0]
";

    #[test]
    fn every_entry_is_read() {
        let spill = Usage {
            entry: "spill".to_owned(),
            registers: 32,
            stack_bytes: 1528,
            spill_store_bytes: 3052,
            spill_load_bytes: 3060,
            shared_bytes: 0,
        };
        let scale = Usage {
            entry: "scale".to_owned(),
            registers: 8,
            shared_bytes: 2048,
            ..Usage::default()
        };
        assert_eq!(Usage::parse(LOG), [spill, scale]);
    }

    #[test]
    fn another_text_says_nothing() {
        assert_eq!(Usage::parse("").len(), 0);
        assert_eq!(Usage::parse("Used 8 registers\nk.cu(3): warning: odd").len(), 0);
        let odd =
            "Compiling entry function 'k' for 'sm_80'\nUsed many registers, 99999999999 bytes smem";
        assert_eq!(Usage::parse(odd), [Usage { entry: "k".to_owned(), ..Usage::default() }]);
    }
}
