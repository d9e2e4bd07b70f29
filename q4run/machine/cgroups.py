"""The control groups (Linux's cgroups) this process is in: where a container's limits stand."""

from pathlib import Path


def cgroups(root: Path, controller: str) -> list[tuple[Path, int]]:
    """The folder of every group above this process in which ``controller`` (``memory``, ``cpu``)
    may set limits, and the version of cgroups, 1 or 2, that it is of; the nearest group first.

    root: the folder that ``proc`` and ``sys`` are in. Empty on systems other than Linux.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, version = root / "sys/fs/cgroup", 2
        elif controller in controllers.split(","):
            base, version = root / "sys/fs/cgroup" / controller, 1
        else:
            continue
        group = Path(path.lstrip("/"))
        # Inside a container the path may be the host's: the mount point itself is then the limit.
        folders += [(base / level, version) for level in (group, *group.parents)]
    return folders
