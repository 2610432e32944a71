"""The command `whet`. Each subcommand is a file here with `parser()` and `main(args)`; nothing heavy is imported before it runs."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from whet.errors import WhetError, did_you_mean

COMMANDS = {
    "run": "improve an agent with one method, and evaluate it on held-out tasks",
    "eval": "evaluate an agent",
    "compare": "run several recipes over several seeds, and put them side by side",
    "methods": "the methods, with their papers and options",
    "envs": "the environments, with their options",
    "data": "import, export, filter, mix and show trajectories",
    "report": "write the page of a run or a comparison",
    "preflight": "whether an environment bears training: speed, errors, replay, leaks",
    "doctor": "what works on this machine, and what is missing",
}
_MODULES = {"eval": "evaluate", "methods": "lists", "envs": "lists", "report": "lists"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    alone, argv = argv is None, list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from whet import __version__

        print(f"whet {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        return _fail(f"unknown command {argv[0]!r}. {did_you_mean(argv[0], COMMANDS)}", 2)
    try:
        return _command(argv)
    except SystemExit as stop:  # argparse has said what is wrong, or has shown its help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        if alone:  # nothing is left to do but to end; whoever presses it once more, or sends it twice, changes nothing
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return _fail(f"interrupted. {_how_to_resume(argv)}".strip(), 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("WHET_DEBUG"):
            raise
        if isinstance(error, WhetError):
            return _fail(_brief(str(error)), 1)
        return _fail(f"{type(error).__name__}: {error} (unexpected; WHET_DEBUG=1 shows where)", 1)


def usage() -> str:
    """The text of `whet --help`."""
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "whet makes LLM agents better and proves it.",
            "",
            "usage: whet COMMAND [options]; whet COMMAND --help says more",
            "",
            *lines,
            "",
            "for example: whet run sft --env search:hops=1 --model base --preset small",
            "             whet compare --env search:hops=1-3 --model base --preset small --recipes base,sft,sft+grpo --out runs/first",
        ]
    )


def _command(argv: list[str]) -> int:
    # a run that is told to end writes its status, as on Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    module = importlib.import_module(f"whet.cli.{_MODULES.get(argv[0], argv[0])}")
    args = module.parser(argv[0]).parse_intermixed_args(argv[1:])
    return int(module.main(args) or 0)


def _brief(message: str) -> str:
    """The message without the traceback that a failed episode carries; of that, the last place outside of whet."""
    text = [line for line in message.splitlines() if not line.startswith("  ")]
    places = re.findall(r'^  File "(.+)", line (\d+)', message, re.MULTILINE)
    own = [f"{file}, line {line}" for file, line in places if not file.startswith(str(Path(__file__).parents[1]))]
    return "\n".join(text) + (f" ({own[-1]})" if own else "")


def _how_to_resume(argv: list[str]) -> str:
    if argv[0] == "data":
        if argv[1] != "import":
            return "Nothing was written."
        return f"What was imported is intact. Go on with: {shlex.join(['whet', *argv])}"
    if argv[0] not in ("run", "compare"):
        return ""
    again = argv if argv[0] == "compare" or "--resume" in argv else [*argv, "--resume"]
    return f"Go on with: {shlex.join(['whet', *again])}"


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
