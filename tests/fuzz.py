"""Damage to files, and a process of its own to read them in."""

import os
import random
import signal
import traceback
from collections.abc import Callable

LIMIT = 120
"""Seconds after which a child process is taken to hang."""


def in_child(program: Callable[[], None]) -> None:
    """Run the program in a process of its own: a crash of a C library, or a hang, is a failure of the test."""
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(LIMIT)
            program()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def damage(good: bytes, chance: random.Random) -> bytes:
    """A few bits or a stretch of bytes are others, or the end is missing."""
    bad, place = bytearray(good), chance.randrange(len(good))
    length = chance.choice([1, 4, 8, 64, 512])
    match chance.randrange(4):
        case 0:
            for _ in range(length % 20):
                bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        case 1:
            bad[place : place + length] = chance.randbytes(length)
        case 2:
            bad[place : place + length] = bytes([chance.choice([0, 255])]) * length
        case 3:
            del bad[place:]
    return bytes(bad)
