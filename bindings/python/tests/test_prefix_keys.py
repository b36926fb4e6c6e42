"""Keys by an implementation of BLAKE3 of our own, against the vectors that Rust checks too."""

import json
from pathlib import Path

import kvist
import pytest

VECTORS = Path(__file__).resolve().parents[3] / "kvcache" / "tests" / "data" / "keys-v1.json"
IV = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED = 1, 2, 4, 8, 16
MASK = 0xFFFFFFFF


def rotate(x, n):
    return (x >> n | x << (32 - n)) & MASK


def compress(chain, block, counter, length, flags):
    """All 16 words of the compression function."""
    s = [*chain, *IV[:4], counter & MASK, counter >> 32, length, flags]

    def mix(a, b, c, d, x, y):
        s[a] = (s[a] + s[b] + x) & MASK
        s[d] = rotate(s[d] ^ s[a], 16)
        s[c] = (s[c] + s[d]) & MASK
        s[b] = rotate(s[b] ^ s[c], 12)
        s[a] = (s[a] + s[b] + y) & MASK
        s[d] = rotate(s[d] ^ s[a], 8)
        s[c] = (s[c] + s[d]) & MASK
        s[b] = rotate(s[b] ^ s[c], 7)

    m = list(block)
    for _ in range(7):
        for i in range(4):
            mix(i, 4 + i, 8 + i, 12 + i, m[2 * i], m[2 * i + 1])
        for i in range(4):
            j = 8 + 2 * i
            mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[j], m[j + 1])
        m = [m[p] for p in PERMUTATION]
    return [s[i] ^ s[i + 8] for i in range(8)]


def words(data):
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


def chunk(data, key, counter, flags, root):
    chain = key
    blocks = [data[i : i + 64] for i in range(0, max(len(data), 1), 64)]
    for n, block in enumerate(blocks):
        last = n == len(blocks) - 1
        use = flags | (CHUNK_START if n == 0 else 0) | (CHUNK_END if last else 0)
        use |= ROOT if last and root else 0
        chain = compress(chain, words(block.ljust(64, b"\0")), counter, len(block), use)
    return chain


def subtree(data, key, counter, flags, root):
    if len(data) <= 1024:
        return chunk(data, key, counter, flags, root)
    chunks = (len(data) + 1023) // 1024
    half = 1 << ((chunks - 1).bit_length() - 1)
    left = subtree(data[: half * 1024], key, counter, flags, False)
    right = subtree(data[half * 1024 :], key, counter + half, flags, False)
    return compress(key, left + right, 0, 64, flags | PARENT | (ROOT if root else 0))


def blake3(data, key=None):
    chain = subtree(data, words(key) if key else list(IV), 0, KEYED if key else 0, True)
    return b"".join(word.to_bytes(4, "little") for word in chain)


def frame(tag, data):
    return bytes([tag]) + len(data).to_bytes(4, "little") + data


def key_of(vector):
    field = lambda name: bytes.fromhex(vector[name])  # noqa: E731
    tokens = b"".join(token.to_bytes(4, "little") for token in vector["tokens"])
    fields = [
        (1).to_bytes(2, "little"), field("salt"), field("model"), field("layout"), field("parent"),
        tokens, field("adapter"), field("extra"), vector["layer"].to_bytes(4, "little"),
    ]  # fmt: skip
    data = b"".join(frame(tag, data) for tag, data in enumerate(fields, 1))
    return blake3(data, field("secret")).hex()


def fingerprint_of(layout):
    number = lambda n: n.to_bytes(4, "little")  # noqa: E731
    pair = lambda name: number(layout[name][0]) + number(layout[name][1])  # noqa: E731
    kind = {"full": 0, "window": 1, "mla": 2}[layout["attention"]]
    fields = [
        bytes([layout["code"]]), b"layer,head,kind,token,dim", number(layout["block_tokens"]),
        pair("kv_heads"), number(layout["dim_k"]), number(layout["dim_v"]), pair("layers"),
        bytes([kind]) + number(layout["window"]),
    ]  # fmt: skip
    return blake3(b"".join(frame(tag, data) for tag, data in enumerate(fields, 1))).hex()


@pytest.fixture(scope="module")
def vectors():
    return json.loads(VECTORS.read_text())


def test_our_blake3_is_blake3():
    # The first of the official test vectors, and the keyed one of 1025 bytes.
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3(b"").hex() == empty
    data = bytes(i % 251 for i in range(1025))
    key = b"whats the Elvish word for friend"
    keyed = "357dc55de0c7e382c900fd6e320acc04146be01db6a8ce7210b7189bd664ea69"
    assert blake3(data, key).hex() == keyed


def test_keys_are_those_of_the_vectors(vectors):
    assert len(vectors["keys"]) >= 24
    for vector in vectors["keys"]:
        assert key_of(vector) == vector["key"], vector["name"]
    assert len({vector["key"] for vector in vectors["keys"]}) == len(vectors["keys"])


def test_fingerprints_are_those_of_the_vectors(vectors):
    for layout in vectors["layouts"]:
        assert fingerprint_of(layout) == layout["fingerprint"], layout


def test_the_package_computes_the_same_keys(vectors):
    secret, model, adapter = bytes(range(32)), b"m" * 32, b"a" * 32
    with kvist.PrefixStore(host="1GiB", key_secret=secret) as store:
        for layout in vectors["layouts"]:
            attention = layout["attention"]
            space = store.space(
                model=model, adapter=adapter, salt=b"tenant", extra=b"image", dtype=layout["dtype"],
                layers=layout["layers"][1], layer_range=tuple(layout["layers"]),
                kv_heads=layout["kv_heads"][1], head_range=tuple(layout["kv_heads"]),
                head_dim=layout["dim_k"], value_dim=layout["dim_v"],
                block_tokens=layout["block_tokens"],
                attention=("window", layout["window"]) if attention == "window" else attention,
            )  # fmt: skip
            n = layout["block_tokens"]
            vector = {
                "secret": secret.hex(), "salt": b"tenant".hex(), "model": model.hex(),
                "layout": layout["fingerprint"], "parent": "00" * 32, "tokens": list(range(n)),
                "adapter": adapter.hex(), "extra": b"image".hex(), "layer": MASK,
            }  # fmt: skip
            first = key_of(vector)
            second = key_of({**vector, "parent": first, "tokens": list(range(n, 2 * n))})
            found = [key.hex() for key in space.prefix(range(2 * n)).keys]
            assert found == [first, second]
