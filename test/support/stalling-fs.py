"""A file system (FUSE) of one program that stops telling about its file when it is told to.

stalling-fs.py <mount point> <program>: says "mounted", and after a line on standard input it answers no question for
attributes any more. It ends with its input, or half a minute after it has stalled, and takes the mount with it.
"""

import ctypes
import os
import struct
import sys
import threading

NAME = b"program"
ROOT, FILE = 1, 2
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, BATCH_FORGET = 1, 2, 3, 14, 15, 18, 25, 26, 42
ENOENT, ENOSYS = 2, 38
LONG = 3600
MNT_DETACH = 2
GIVES_UP_AFTER_S = 30

mount_point = sys.argv[1].encode()
content = open(sys.argv[2], "rb").read()
libc = ctypes.CDLL(None, use_errno=True)
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"stalling", mount_point, b"fuse", 0, options) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
stalled = threading.Event()


def attributes(node):
    mode, size = (0o040755, 0) if node == ROOT else (0o100755, len(content))
    return struct.pack("<6Q10I", node, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node, body):
    """Bytes, the number of an error, or None for what is not answered."""
    if opcode == INIT:
        return struct.pack("<4I2H2I2HI28x", 7, 31, 65536, 0, 8, 8, 65536, 1, 16, 0, 0)
    if opcode == LOOKUP:
        found = body.rstrip(b"\0") == NAME
        return struct.pack("<4Q2I", FILE, 0, LONG, 0, 0, 0) + attributes(FILE) if found else ENOENT
    if opcode == GETATTR:
        return None if stalled.is_set() else struct.pack("<QII", 0, 0, 0) + attributes(node)
    if opcode == OPEN:
        return struct.pack("<QII", 0, 0, 0)
    if opcode == READ:
        _, offset, size = struct.unpack_from("<QQI", body)
        return content[offset : offset + size]
    if opcode in (FORGET, BATCH_FORGET):
        return None
    return b"" if opcode in (RELEASE, FLUSH) else ENOSYS


def serve():
    while True:
        try:
            request = os.read(device, 1 << 20)
        except OSError:
            return  # It is no longer mounted.
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        reply = answer(opcode, node, request[40:])
        if reply is None:
            continue
        error, data = (-reply, b"") if isinstance(reply, int) else (0, reply)
        os.write(device, struct.pack("<IiQ", 16 + len(data), error, unique) + data)


def end():
    libc.umount2(mount_point, MNT_DETACH)
    os._exit(0)


threading.Thread(target=serve, daemon=True).start()
print("mounted", flush=True)
sys.stdin.readline()
stalled.set()
print("stalled", flush=True)
threading.Timer(GIVES_UP_AFTER_S, end).start()
sys.stdin.read()
end()
