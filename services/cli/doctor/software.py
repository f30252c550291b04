"""Python, packages, and what torch and the driver know of GPUs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from lowdimfa.services.cli.doctor.finding import Finding, ok, problem, warning

TESTED = ((3, 11), (3, 13))
"""The oldest and the newest Python with which the tests were run."""

LOAD_SECONDS = 120.0
"""Longest wait until torch and Ray are loaded, from a cold disk too."""

_TOOLS = {"dev", "fuzz"}
"""Extras that are of no use to those who train."""


@dataclass(frozen=True)
class Package:
    """A package that is asked for.

    Attributes
    ----------
    wanted
        Name and versions, as ``torch>=2.6``.
    found
        Its version here; None if it isn't installed.
    fits
        Whether that is one of those asked for.
    """

    wanted: str
    found: str | None
    fits: bool


@dataclass(frozen=True)
class Loaded:
    """What loading torch and Ray came to, in a process of its own.

    Attributes
    ----------
    errors
        Why one can't be loaded, by name.
    torch
        Its version.
    build
        ``CUDA 12.4``, ``ROCm 6.2``, or nothing for a build for processors.
    devices
        The GPUs that it sees.
    """

    errors: Mapping[str, str]
    torch: str = ""
    build: str = ""
    devices: Sequence[str] = ()


def python(version: tuple[int, int, int]) -> Finding:
    """Say whether the tests were run with this Python."""
    found = ".".join(map(str, version))
    (least, most) = (".".join(map(str, end)) for end in TESTED)
    if version[:2] < TESTED[0]:
        return problem("python", found, f"Install Python {least} to {most}.")
    if version[:2] > TESTED[1]:
        return warning("python", found, f"Python {least} to {most} are tested; this may work as well.")
    return ok("python", found)


def packages(needed: Sequence[Package]) -> Finding:
    """Say whether everything that is needed is there."""
    wrong = [package for package in needed if not package.fits]
    if not wrong:
        return ok("packages", f"all {len(needed)} that are needed")
    return problem("packages", _said(wrong), f"Run {_install(wrong)}.")


def extra(name: str, asked: Sequence[Package]) -> Finding:
    """Say what is there of an extra."""
    check = f"extra {name}"
    wrong = [package for package in asked if not package.fits]
    if not wrong:
        return ok(check, "installed")
    if all(package.found is None for package in wrong):
        return ok(check, f"not installed (pip install 'lowdimfa[{name}]')")
    return warning(check, _said(wrong), f"Run {_install(wrong)} if you use it.")


def libraries(loaded: Loaded) -> Finding:
    """Say whether torch and Ray can be loaded."""
    if loaded.errors:
        said = "; ".join(f"{name} does not load: {error}" for name, error in loaded.errors.items())
        return problem("torch and ray", said, "Install it anew, or what the message says is missing.")
    return ok("torch and ray", f"load; torch {loaded.torch}, built for {loaded.build or 'processors alone'}")


def gpus(driver: Sequence[str] | None, loaded: Loaded) -> Finding:
    """Say whether the GPUs of this machine are of use.

    Parameters
    ----------
    driver
        Those that the driver names; None if there is none.
    loaded
        What torch says.
    """
    if loaded.devices:
        return ok("gpus", _counted(loaded.devices))
    if not driver:
        return ok("gpus", "none; blocks compute on processors")
    found = f"the driver has {_counted(driver)}, and torch sees none of them"
    why = (
        "Look at CUDA_VISIBLE_DEVICES, and whether the driver is as new as torch's build asks for."
        if loaded.build
        else "Install a build of torch for this GPU; see https://pytorch.org/get-started/locally."
    )
    return warning("gpus", found, why)


def read_packages(owner: str = "lowdimfa") -> tuple[list[Package], dict[str, list[Package]]]:
    """Return what a distribution needs, and what each of its extras asks for, as its metadata has it."""
    try:
        distribution = metadata.distribution(owner)
    except metadata.PackageNotFoundError:  # run from a folder, without installation
        return [Package(owner, None, False)], {}
    requirements = [Requirement(text) for text in distribution.requires or ()]
    extras = {
        name: [
            _package(each) for each in requirements if each.marker and each.marker.evaluate({"extra": name})
        ]
        for name in sorted(set(distribution.metadata.get_all("Provides-Extra") or ()) - _TOOLS)
    }
    needed = [each for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
    return [_package(each) for each in needed], extras


def _package(requirement: Requirement) -> Package:
    found = version_of(requirement.name)
    wanted = f"{requirement.name}{requirement.specifier}"
    fits = found is not None and requirement.specifier.contains(found, prereleases=True)
    return Package(wanted, found, fits)


def version_of(name: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_LOAD = """
import json
said = {"errors": {}}
try:
    import torch
    versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    build = next((f"{kind} {version}" for kind, version in versions.items() if version), "")
    devices = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]
    said |= {"torch": torch.__version__, "build": build, "devices": devices}
except Exception as error:
    said["errors"]["torch"] = f"{type(error).__name__}: {error}"
try:
    import ray
except Exception as error:
    said["errors"]["ray"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


def begin_loading(script: str = _LOAD) -> subprocess.Popen[str]:
    """Load torch and Ray in a process of its own: a library for another processor ends the one that loads it."""
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def end_loading(process: subprocess.Popen[str], seconds: float = LOAD_SECONDS) -> Loaded:
    """Return what it came to."""
    try:
        said, complaints = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Loaded({"torch": f"not loaded within {seconds:g} s"})
    for line in reversed(said.splitlines()):
        with suppress(ValueError, TypeError):
            return Loaded(**json.loads(line))
    last = (complaints.strip().splitlines() or [f"ended with exit code {process.returncode}"])[-1]
    return Loaded({"torch": last})


def read_driver() -> list[str] | None:
    """Return the GPUs that NVIDIA's driver names, with its version; None if there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
        return [line.replace(", ", " (driver ") + ")" for line in done.stdout.splitlines() if line.strip()]
    return None


def _said(wrong: Sequence[Package]) -> str:
    return ", ".join(f"{package.wanted} ({package.found or 'not installed'})" for package in wrong)


def _install(wrong: Sequence[Package]) -> str:
    return "pip install " + " ".join(f"'{package.wanted}'" for package in wrong)


def _counted(names: Sequence[str]) -> str:
    counts = {name: list(names).count(name) for name in names}
    return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())
