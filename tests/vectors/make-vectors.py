#!/usr/bin/env python3
"""
Golden frames, written from the byte table of docs/frame-format.md alone.

    make-vectors.py [FOLDER]         write the frames (default: beside this file)
    make-vectors.py --check          compare the files here with what would be written
    make-vectors.py --dump FILE...   print frames field by field

It shares no code with daemon/frame, so that a mistake would have to be made
twice to go unnoticed.
"""

import os
import struct
import sys

MAGIC = b"\x89SLC"
HEADER = struct.Struct("<4sBBHIIQQQIIQQ")
NO_TICKET = 0xFFFFFFFF
JOBS, SENTINEL = 1, 2
EXTENDED, SAME_ID, MARKER, REFERENCE = 1, 2, 4, 8
EXTENSIONS = [(1, "id", "<Q"), (2, "credit", "<Q"), (4, "time", "<Q"), (8, "interruptions", "<I")]
FAILED, DROPPED = b"\x01", b"\x02"
TIME = 1_700_000_000_000_000

assert HEADER.size == 64


def job(payload, attempts=0, flags=0, **extensions):
    names = [name for _, name, _ in EXTENSIONS]
    assert not set(extensions) - set(names)
    if extensions:
        flags |= EXTENDED
    out = struct.pack("<I", len(payload) | attempts << 20 | flags << 28)
    if extensions:
        out += struct.pack("<I", sum(bit for bit, name, _ in EXTENSIONS if name in extensions))
        out += b"".join(struct.pack(form, extensions[name]) for _, name, form in EXTENSIONS if name in extensions)
    return out + payload


def frame(jobs=(), version=1, kind=JOBS, priority=16, base_id=1, time=TIME, sequence=1, producer=0,
          ticket=NO_TICKET, key=0, generation=0):
    body = b"".join(jobs)
    header = HEADER.pack(MAGIC, version, kind, priority, 64 + len(body) + 8, len(jobs), base_id, time,
                         sequence, producer, ticket, key, generation)
    return header + body + struct.pack("<Q", sequence)


VECTORS = {
    # The worked example of docs/frame-format.md.
    "example.frame": frame([job(b"7"), job(b"11"), job(b"13", attempts=1)], base_id=40, sequence=0x0102030405,
                           producer=1026, ticket=3, key=0x1122334455667788),
    "empty-job.frame": frame([job(b"")]),
    "client.frame": frame([job(b"one"), job(b"two")], base_id=0xFEDCBA9876543210, sequence=9),
    "same-id.frame": frame([job(b"a"), job(b"b", flags=SAME_ID), job(b"c", flags=SAME_ID), job(b"d")], base_id=100,
                           sequence=2, producer=1024, ticket=0, key=5),
    # Another result of a job whose first ones went with an earlier frame: the flag means nothing on the first job.
    "first-same-id.frame": frame([job(b"x", flags=SAME_ID), job(b"y", flags=SAME_ID), job(b"z")], base_id=77,
                                 sequence=3, producer=2, ticket=1, key=5),
    "explicit-id.frame": frame([job(b"a"), job(b"b", id=10**18), job(b"c"), job(b"d", id=3)], base_id=1, sequence=4,
                               producer=2, ticket=1, key=5),
    "extended.frame": frame([job(b"all", attempts=255, id=2**64 - 1, credit=2**59, time=TIME + 1, interruptions=9),
                             job(b"credit", credit=1), job(b"time", time=TIME - 1),
                             job(b"interruptions", interruptions=2**32 - 1)],
                            base_id=8, sequence=5, producer=2, ticket=1, key=5),
    "markers.frame": frame([job(FAILED + b"it did not divide", flags=MARKER, id=12), job(DROPPED, flags=MARKER)],
                           base_id=11, sequence=6, producer=2, ticket=1, key=5),
    "sentinel.frame": frame(kind=SENTINEL, priority=0, base_id=0, sequence=0xCAFE, key=5, generation=0xCAFE),
    "widest.frame": frame([job(bytes(range(256)) * 4)], priority=0xFFFF, base_id=2**64 - 1, time=2**64 - 1,
                          sequence=2**64 - 1, producer=2**32 - 1, ticket=2**32 - 2, key=2**64 - 1,
                          generation=2**64 - 1),
}


def vectors_folder():
    return os.path.dirname(os.path.abspath(__file__))


def write(folder):
    for name, data in VECTORS.items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)


def check():
    stale = []
    for name, data in VECTORS.items():
        try:
            with open(os.path.join(vectors_folder(), name), "rb") as f:
                same = f.read() == data
        except FileNotFoundError:
            same = False
        if not same:
            stale.append(name)
    extra = [n for n in os.listdir(vectors_folder()) if n.endswith(".frame") and n not in VECTORS]
    for name in stale + extra:
        print(f"{name}: not what make-vectors.py writes", file=sys.stderr)
    return 1 if stale or extra else 0


def dump(path):
    with open(path, "rb") as f:
        data = f.read()
    names = "magic version kind priority length count base_id time_usec sequence producer ticket key generation".split()
    head = dict(zip(names, HEADER.unpack_from(data)))
    print(path)
    for name, value in head.items():
        print(f"  {name:10} {value!r}")
    at, job_id = 64, head["base_id"] - 1
    for i in range(head["count"]):
        (word,) = struct.unpack_from("<I", data, at)
        size, attempts, flags = word & 0xFFFFF, word >> 20 & 0xFF, word >> 28
        text = [f"attempts={attempts}", f"flags={flags:#x}"]
        job_id += 0 if flags & SAME_ID and i > 0 else 1
        start, at = at, at + 4
        if flags & EXTENDED:
            (present,) = struct.unpack_from("<I", data, at)
            at += 4
            for bit, name, form in EXTENSIONS:
                if present & bit:
                    (value,) = struct.unpack_from(form, data, at)
                    at += struct.calcsize(form)
                    text.append(f"{name}={value}")
                    if name == "id":
                        job_id = value
        print(f"  job {i} at {start}: id={job_id & 2**64 - 1} {' '.join(text)} {data[at:at + size]!r}")
        at += size
    print(f"  trailer    {struct.unpack_from('<Q', data, at)[0]}")


def main(arguments):
    if arguments[:1] == ["--dump"]:
        for path in arguments[1:]:
            dump(path)
        return 0
    if arguments == ["--check"]:
        return check()
    write(arguments[0] if arguments else vectors_folder())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
