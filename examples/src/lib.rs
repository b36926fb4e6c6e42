//! Small programs to copy from: see `src/bin/`.
