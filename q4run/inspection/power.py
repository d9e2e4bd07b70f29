"""What this machine does to save power: such as matters to a computation that wants all of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

_CPUFREQ = "sys/devices/system/cpu/cpu0/cpufreq"
# With these drivers the governor "powersave" is the ordinary one, and the preference decides.
_DRIVERS_WITH_PREFERENCE = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
_PMSET_SECONDS = 5


def describe_power(root: Path = Path("/")) -> dict[str, Any]:
    """{"battery", "low_power", "governor"}: charge in percent where the machine runs from one, else
    null; whether speed is being held back to save power, null where nothing says; and Linux's name
    for how the clock is chosen, or null. ``root`` is where ``sys`` is."""
    governor = _read(root / _CPUFREQ / "scaling_governor")
    held_back = _macos_low_power() if sys.platform == "darwin" else _linux_low_power(root, governor)
    return {"battery": _battery_in_use(), "low_power": held_back, "governor": governor}


def _battery_in_use() -> int | None:
    """Percent left of the battery that the machine runs from; None on mains power."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, NotImplementedError, ValueError, psutil.Error):
        return None
    if battery is None or battery.power_plugged is not False:
        return None
    return round(float(battery.percent))


def _linux_low_power(root: Path, governor: str | None) -> bool | None:
    profile = _read(root / "sys/firmware/acpi/platform_profile")
    if profile in ("low-power", "quiet"):
        return True
    if governor is None:
        return None if profile is None else False
    if governor != "powersave":
        return False
    if _read(root / _CPUFREQ / "scaling_driver") not in _DRIVERS_WITH_PREFERENCE:
        return True
    return _read(root / _CPUFREQ / "energy_performance_preference") == "power"


def _macos_low_power() -> bool | None:
    try:
        done = subprocess.run(
            ["pmset", "-g"], capture_output=True, text=True, timeout=_PMSET_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    words = [line.split() for line in done.stdout.splitlines()]
    modes = [pair[1] for pair in words if len(pair) >= 2 and pair[0] == "lowpowermode"]
    return modes[0] == "1" if modes else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
