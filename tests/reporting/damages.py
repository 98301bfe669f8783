"""Random damage to files: what disks, crashes, editors and strangers leave of JSON, notebooks and arrays."""

import json
from pathlib import Path
from random import Random

VALUES = (
    None, True, "", "x", "../x", "$\\frac{", "\ud800", "a" * 5000, 0, -1, 1.5, 10**30, 10**400, 1e300, [], {},
    [None], {"": None}, {"x": {"y": [1]}},
)  # fmt: skip
LITERALS = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 3000 + "]" * 3000, '"\\ud83d"')
MARK = "\x07put a literal here"


def damage(path: Path, random: Random) -> str:
    """Damages one file; returns what was done, for messages."""
    data = path.read_bytes()
    kind = random.randrange(10)
    if kind == 0:
        path.unlink()
        return f"{path.name}: deleted"
    if kind == 1:
        path.unlink()
        path.mkdir()
        return f"{path.name}: a folder"
    if kind == 2 or path.suffix == ".npz":
        done, data = _bytes(data, random)
    else:
        done, data = _json(path, data, random)
    path.write_bytes(data)
    return f"{path.name}: {done}"


def _bytes(data: bytes, random: Random) -> tuple[str, bytes]:
    place = random.randrange(len(data))
    noise = random.choice((b"", b"\xff", b"\0" * 9, b"}", b'"', b"\n", random.randbytes(20)))
    cut = random.choice((0, len(noise), 40, len(data)))
    return f"{noise} for {cut} bytes at {place}", data[:place] + noise + data[place + cut :]


def _json(path: Path, data: bytes, random: Random) -> tuple[str, bytes]:
    lines = data.splitlines() if path.suffix == ".jsonl" else [data]
    number = random.randrange(len(lines))
    value = json.loads(lines[number])
    *to, last = random.choice(list(_places(value)))
    parent = value
    for step in to:
        parent = parent[step]
    literal = ""
    if random.random() < 0.3:
        done = f"without {last} in {to}"
        del parent[last]
    else:
        new = random.choice((*VALUES, *(MARK,) * 4))
        literal = random.choice(LITERALS)
        done = f"{(literal if new == MARK else repr(new))[:40]} for {last} in {to}"
        parent[last] = new
    lines[number] = json.dumps(value).replace(json.dumps(MARK), literal).encode()
    return f"line {number + 1}: {done}", b"\n".join(lines) + b"\n"


def _places(value) -> list:
    """Ways to all parts of a JSON value, the shallow ones as often as the many deep ones."""
    found = []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        below = [(name, *way) for way in _places(part)]
        found += [(name,)] * (1 + len(below) // 4) + below
    return found
