"""A Python that has llama-cpp-python, as far as q4run can tell: it notes what it is asked for."""

import sys
import textwrap
from pathlib import Path

# Linux counts for each process what it fetches from disk.
DISK_BYTES = int if Path("/proc/self/io").exists() else type(None)

_SOURCE = """
    #!{python}
    import json, sys
    if sys.argv[1] == "-c":
        print("a fake")
        sys.exit({able} - 1)
    request = json.load(sys.stdin)
    {before}
    with open({log!r}, "a") as log:
        log.write(json.dumps([sys.argv[1], request]) + "\\n")
    if {fails}:
        sys.exit("the peer is out of sorts")
    print("chatter on standard output")
    starts = ["cold", "warm"][request["warm_up"]:][:request["passes"]]
    print(json.dumps([dict(
        model=request["model"], threads=request["threads"], io="mmap", ram_budget=None, start=start,
        from_disk_share=None, notes=[],
        prefill=dict(tokens=len(request["prompt"]), tok_s=200.0, disk_bytes={disk_bytes},
                     floor_bytes=None, once_per_chunk_bytes=None, wait_s=None, busy_share=None),
        decode=dict(tokens=len(request["continuation"]), tok_s=50.0, as_chat_tok_s=None,
                    bytes_per_token=None, read_limit_ratio=None, disk_bytes={disk_bytes},
                    floor_bytes=None, busy_share=None, disk_share=None),
        load_s=1.5, first_token_s=0.5, peak_rss=10**9,
        experts=dict(count=None, slots=None, hit_rate=None, bytes_read=None, requests=None,
                     read_gb_s=None, wait_s=None))
        for start in starts]))
"""


def make_fake_peer(
    folder: Path, *, able: bool = True, fails: bool = False, before: str = ""
) -> tuple[Path, Path]:
    """Writes the program; returns its path and that of its log.

    able: whether it can import llama_cpp; fails: whether its runs do; before: code that a run
    begins with.
    """
    path, log = folder / "peer", folder / "log"
    disk_bytes = 10**6 if DISK_BYTES is int else None
    source = _SOURCE.format(
        python=sys.executable,
        able=able,
        fails=fails,
        log=str(log),
        disk_bytes=disk_bytes,
        before=before,
    )
    path.write_text(textwrap.dedent(source).lstrip())
    path.chmod(0o755)
    return path, log
