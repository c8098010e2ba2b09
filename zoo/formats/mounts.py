"""Tells which files lie on a network file system, where mapping them is slow and unsafe."""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK = re.compile(
    r"nfs4?|lustre|gpfs|cifs|smb\w*|beegfs|ceph|9p|afs|panfs|orangefs|pvfs2|wekafs|glusterfs|ncpfs"
    r"|fuse\.(sshfs|s3fs|rclone|gcsfuse|glusterfs|ceph|juicefs|goofys|davfs2?)"
)


def is_on_network(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a file lies on a network file system, where mapped pages are slow and may vanish under the process.

    Args:
        path: The file.
        mounts: The kernel's table of mounts; where there is none, the file counts as local.
    """
    if not mounts.is_file():
        return False
    real_path = path.resolve()
    above, best, kind = {str(real_path), *map(str, real_path.parents)}, "", ""
    for line in mounts.read_text("utf-8", "surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), left.split()[4])
        if point in above and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return _NETWORK.fullmatch(kind) is not None
