"""The file system that a path is on, and what of it matters to reading a model."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

# Traits, as ``FileSystem.traits`` has them.
COMPRESSED, NETWORKED, OVERLAY, IN_MEMORY = "compressed", "networked", "overlay", "in memory"
USER_SPACE = "in user space"

_NETWORKED = {
    "9p",
    "afpfs",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "davfs",
    "glusterfs",
    "gpfs",
    "lustre",
}
_NETWORKED |= {"ncpfs", "nfs", "nfs4", "smb3", "smbfs", "virtiofs", "webdav"}
# What follows "fuse." in the type of a mount whose bytes come over a network.
_NETWORKED_FUSE = {"beegfs", "ceph", "cephfs", "davfs", "davfs2", "gcsfuse", "glusterfs", "goofys"}
_NETWORKED_FUSE |= {"juicefs", "moosefs", "mount-s3", "rclone", "s3fs", "sshfs", "vmhgfs-fuse"}
_OVERLAYS = {"aufs", "overlay", "fuse.fuse-overlayfs", "fuse.overlayfs", "unionfs"}
_IN_MEMORY = {"devtmpfs", "ramfs", "tmpfs"}
# Compressed whatever the options say; ZFS compresses unless told not to, which no mount shows.
_COMPRESSED = {"cramfs", "erofs", "fuse.squashfuse", "squashfs", "zfs"}
_COMPRESSING_OPTIONS = ("compress=", "compress-force=", "compress_algorithm=", "compression=")


@dataclass(frozen=True)
class FileSystem:
    """kind: the type by the system's name for it (``ext4``, ``apfs``); empty where none is known.

    mount_point: the folder it begins at; traits: those of this module that it has.
    """

    kind: str
    mount_point: Path
    traits: tuple[str, ...]


def file_system_of(path: Path) -> FileSystem:
    """The file system that ``path`` is on: of the mounts above it the nearest, the last of equals.

    Asks the list of mounts only (``/proc/mounts``, on macOS ``getfsstat``): nothing is touched that
    might hang.
    """
    path = Path(os.path.realpath(path))
    kind, options, mount_point = "", "", Path(path.anchor)
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, psutil.Error):
        mounts = []
    for mount in mounts:
        folder = Path(mount.mountpoint)
        if path.is_relative_to(folder) and len(folder.parts) >= len(mount_point.parts):
            kind, options, mount_point = mount.fstype, mount.opts, folder
    return FileSystem(kind, mount_point, traits_of(kind, options))


def traits_of(kind: str, options: str = "") -> tuple[str, ...]:
    """What the type and the mount options (separated by commas) say of a file system."""
    kind = kind.lower()
    is_fuse = kind == "fuseblk" or kind.partition(".")[0] == "fuse"
    is_networked = kind in _NETWORKED or (is_fuse and kind[len("fuse.") :] in _NETWORKED_FUSE)
    has = {
        COMPRESSED: kind in _COMPRESSED or _compresses(options),
        NETWORKED: is_networked,
        OVERLAY: kind in _OVERLAYS,
        IN_MEMORY: kind in _IN_MEMORY,
        USER_SPACE: is_fuse and not is_networked and kind not in _OVERLAYS,
    }
    return tuple(trait for trait, holds in has.items() if holds)


def _compresses(options: str) -> bool:
    for option in options.lower().split(","):
        name, _, value = option.partition("=")
        if option.startswith(_COMPRESSING_OPTIONS) and value not in ("no", "none", "off"):
            return True
        if name in ("compress", "compress-force") and not value:
            return True
    return False


def takes_direct_reads(path: Path) -> bool | None:
    """Whether a file may be read past the page cache; None where no try can tell.

    Linux refuses ``O_DIRECT`` as the file is opened (tmpfs, some network mounts). macOS has
    ``F_NOCACHE``, which is a wish that no file system refuses.
    """
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return False
    os.close(file)
    return True
