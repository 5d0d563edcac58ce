"""Damage bytes as disks, downloads and enemies do."""

from __future__ import annotations

from random import Random


def damaged(random: Random, whole: bytes) -> bytes:
    """Change one to four places: a bit, a byte, a number, a piece cut out, doubled or moved."""
    data = bytearray(whole)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 8, 64))
        kind = random.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + 1] = random.randbytes(1)
        elif kind == 2:
            digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
            if digits:
                data[random.choice(digits)] = ord(random.choice("0123456789-.e "))
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            piece = data[at : at + size]
            del data[at : at + size]
            to = random.randrange(len(data) + 1)
            data[to:to] = piece
        elif random.random() < 0.3:
            del data[at:]
    return bytes(data)
