//! General-purpose compressors over raw tiles, each tile on its own.

use super::tiles::Tiles;
use crate::Error;

/// A compressor with whatever it keeps between calls.
pub(super) enum Peer {
    Lz4,
    Zstd(zstd::bulk::Compressor<'static>, zstd::bulk::Decompressor<'static>),
}

/// All of them.
pub(super) fn all() -> Result<Vec<Peer>, Error> {
    let compressor = zstd::bulk::Compressor::new(1).map_err(Error::io("starting zstd"))?;
    let decompressor = zstd::bulk::Decompressor::new().map_err(Error::io("starting zstd"))?;
    Ok(vec![Peer::Lz4, Peer::Zstd(compressor, decompressor)])
}

impl Peer {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Peer::Lz4 => "lz4",
            Peer::Zstd(..) => "zstd-1",
        }
    }

    /// Length of one tile's output in `out`, at most the tile's: one that grows is stored raw.
    fn encode_one(&mut self, tile: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let len = match self {
            Peer::Lz4 => lz4_flex::block::compress_into(tile, out)
                .map_err(|e| Error::io("lz4")(std::io::Error::other(e)))?,
            Peer::Zstd(c, _) => c.compress_to_buffer(tile, out).map_err(Error::io("zstd"))?,
        };
        Ok(len.min(tile.len()))
    }

    /// Bytes of all tiles after encoding.
    pub(super) fn encode(&mut self, tiles: &Tiles) -> Result<usize, Error> {
        let mut out = vec![0u8; 2 * tiles.tile_bytes() + 1024];
        let mut bytes = 0;
        for tile in tiles.each() {
            bytes += self.encode_one(tile, &mut out)?;
        }
        Ok(bytes)
    }

    /// Encoded tiles; one that does not shrink is none.
    pub(super) fn coded(&mut self, tiles: &Tiles) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut out = vec![0u8; 2 * tiles.tile_bytes() + 1024];
        let mut encode = |tile: &[u8]| {
            let len = self.encode_one(tile, &mut out)?;
            Ok((len < tile.len()).then(|| out[..len].to_vec()))
        };
        tiles.each().map(&mut encode).collect()
    }

    /// Decodes all tiles; one that is stored raw is copied.
    pub(super) fn decode(&mut self, coded: &[Option<Vec<u8>>], tiles: &Tiles, out: &mut [u8]) {
        let rooms = out.chunks_exact_mut(tiles.tile_bytes());
        for ((coded, raw), out) in coded.iter().zip(tiles.each()).zip(rooms) {
            let Some(coded) = coded else {
                out.copy_from_slice(raw);
                continue;
            };
            let len = match self {
                Peer::Lz4 => lz4_flex::block::decompress_into(coded, out).ok(),
                Peer::Zstd(_, d) => d.decompress_to_buffer(coded, out).ok(),
            };
            assert_eq!(len, Some(raw.len()), "{} lost a tile", self.name());
        }
    }
}
