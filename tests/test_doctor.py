"""``q4run doctor``: what the machine offers."""

import json
import os
import subprocess
import sys


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "q4run", "doctor", *arguments]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_it_names_the_target_and_the_threads():
    done = doctor("--json")
    assert done.returncode == 0, done.stderr
    machine = json.loads(done.stdout)
    assert machine["simd"]["target"] in machine["simd"]["available"]
    assert 1 <= machine["threads"]["default"] <= machine["cores"]["usable"]
    assert machine["memory"]["available"] <= machine["memory"]["total"]
    assert machine["versions"]["python"] == sys.version.split()[0]


def test_a_forced_target_is_told_and_what_it_costs():
    done = doctor(Q4RUN_SIMD="generic")
    assert done.returncode == 0, done.stderr
    assert "SIMD target   generic" in done.stdout
    assert "many times faster" in done.stdout


def test_a_cache_that_cannot_be_kept_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor(Q4RUN_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr
    assert "compiled anew at each start" in done.stdout
