"""Code that a model wrote, run where it can do no harm: one call, one `Result`, several ways of confining.

    with open_sandbox() as sandbox:
        print(sandbox.run("print(sum(range(10)))").stdout)      # 45

`process` (the default) confines a Python process by Landlock, seccomp and rlimits; `zygote` forks such processes from one
that is warm; `monty` is an interpreter of its own; `container` and `remote` run elsewhere. Each refuses to open where it
cannot keep its promise. docs/sandbox.md says what each one promises.
"""

from __future__ import annotations

import importlib
from typing import Any

from whet.errors import ConfigError, did_you_mean
from whet.tools.sandbox.base import Capabilities, Result, Sandbox, SandboxUnavailable

__all__ = ["KINDS", "Capabilities", "Result", "Sandbox", "SandboxUnavailable", "open_sandbox"]

KINDS = {
    "process": "whet.tools.sandbox.process:ProcessSandbox",
    "zygote": "whet.tools.sandbox.zygote:ZygoteSandbox",
    "monty": "whet.tools.sandbox.monty:MontySandbox",
    "container": "whet.tools.sandbox.container:ContainerSandbox",
    "remote": "whet.tools.sandbox.remote:RemoteSandbox",
}
"""Kind -> the class behind it; its module is imported when the kind is asked for."""


def open_sandbox(kind: str = "process", **options: Any) -> Sandbox:
    """A sandbox of this kind; `options` are those of its class.

    Raises ConfigError for an unknown kind or option, SandboxUnavailable where this machine offers too little for it,
    MissingExtra where a package is missing.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown sandbox {kind!r}. {did_you_mean(kind, KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    cls = getattr(importlib.import_module(module), name)
    try:
        sandbox: Sandbox = cls(**options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(f"sandbox {kind!r}: {str(error).partition(' ')[2]}") from error
    return sandbox
