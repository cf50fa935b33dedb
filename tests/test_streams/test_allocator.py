from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
import numpy as np
from streams.allocator import map_large_blocks

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")] + [
        (name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "mapped":
    assert map_large_blocks()
np.ones(24 << 20, np.uint8)  # freed at once: glibc takes it for a sign that such blocks come and go
before = libc.mallinfo2().hblks
held = np.ones(3 << 20, np.uint8)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone has this setting")
@pytest.mark.parametrize(("how", "mapped"), [("left alone", "0"), ("mapped", "1")])
def test_a_large_block_has_pages_of_its_own(how: str, mapped: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mapped
