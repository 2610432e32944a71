"""`whet doctor`: what works on this machine, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from whet.cli.common import Parser

_PACKAGES = {
    "torch": "train",
    "transformers": "train",
    "safetensors": "train",
    "peft": "train",
    "minigrid": "envs",
    "gymnasium": "envs",
    "openai": "openai",
}
_NEEDED = 2 << 30


def parser(command: str) -> Parser:
    return Parser(command, "What works on this machine, and what is missing. Exit code 1 where something essential fails.")


def main(args: argparse.Namespace) -> int:
    broken = 0
    for name, (state, text) in checks().items():
        broken += state == "FAIL"
        print(f"{state:<5}{name:<14}{text}")
    return 1 if broken else 0


def checks() -> dict[str, tuple[str, str]]:
    """Each check's state (`ok`, `-` for an optional part that is missing, `FAIL`) and what was found."""
    found = {
        "python": (
            "ok" if sys.version_info >= (3, 11) else "FAIL",
            f"{platform.python_version()} at {sys.executable} (3.11 or later is needed)",
        ),
        "system": ("ok", f"{platform.platform()}, {_cores()} cores"),
    }
    found |= {package: _package(package, extra) for package, extra in _PACKAGES.items()}
    if found["torch"][0] == "ok":
        found |= _torch()
    found["base model"] = _base_model()
    found["sqlite"] = _sqlite()
    found |= sandboxes()
    free = shutil.disk_usage(".").free
    found["disk"] = ("ok" if free > _NEEDED else "FAIL", f"{free / (1 << 30):.1f} GB free here (at least {_NEEDED >> 30} GB is advised)")
    found["temp dir"] = _writable(Path(tempfile.gettempdir()))
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _package(package: str, extra: str) -> tuple[str, str]:
    try:
        return "ok", importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-", f"not installed; for {extra}: pip install 'whet[{extra}]'"


def _torch() -> dict[str, tuple[str, str]]:
    try:
        import torch
    except Exception as error:
        return {"torch": ("FAIL", f"installed, but cannot be imported: {error}")}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fast = "in hardware" if "amx_bf16" in flags or "avx512_bf16" in flags else "by emulation (slow; use float32)"
    return {
        "threads": ("ok", f"{torch.get_num_threads()} of torch (OMP_NUM_THREADS sets them)"),
        "devices": ("ok", ", ".join(devices) or "processor only"),
        "bfloat16": ("ok", f"on the processor {fast}"),
    }


def _base_model() -> tuple[str, str]:
    # looked for by its files, so that the check works without torch
    spec = importlib.util.find_spec("whet")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    found = [weights for root in roots for weights in sorted(root.rglob("*.safetensors"))]
    if not found:
        return "-", "not found in the package; build it with `make base`, or give --model"
    return "ok", f"{found[0].parent} ({sum(file.stat().st_size for file in found) / 1e6:.1f} MB)"


def _sqlite() -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as directory:
        mode = sqlite3.connect(Path(directory) / "x.db").execute("pragma journal_mode = wal").fetchone()[0]
    return ("ok" if mode == "wal" else "FAIL"), f"{sqlite3.sqlite_version}, journal mode {mode}"


def sandboxes() -> dict[str, tuple[str, str]]:
    """What each kind of sandbox would run with here, or what it lacks. The first is tried, not only looked for."""
    from whet.tools.sandbox import SandboxUnavailable, open_sandbox

    try:
        with open_sandbox("process") as sandbox:
            found = {"process box": ("ok", f"code is confined by {', '.join(sandbox.capabilities.details)} (sandboxes process and zygote)")}
    except (SandboxUnavailable, ImportError) as error:  # modules of Unix are missing elsewhere
        found = {"process box": ("-", str(error))}
    found["monty"] = _package("pydantic-monty", "monty")
    command = next((name for name in ("docker", "podman") if shutil.which(name)), None)
    if command is None:
        return found | {"container": ("-", "neither docker nor podman is installed; the sandbox 'container' needs one")}
    try:
        answer = subprocess.run([command, "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return found | {"container": ("-", f"{command} does not answer: {error}")}
    works = answer.returncode == 0
    told = (
        f"{command} {answer.stdout.strip()}"
        if works
        else f"{command} is installed, but its daemon does not answer; start it, or use podman"
    )
    return found | {"container": ("ok" if works else "-", told)}


def _writable(path: Path) -> tuple[str, str]:
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"x" * 4096)
    except OSError as error:
        return "FAIL", f"{path} cannot be written: {error.strerror}"
    return "ok", f"{path} can be written"
