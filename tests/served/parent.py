"""A server of the tests ends with the process that started it, however that ends: when its standard input does."""

import os
import signal
import sys
import threading


def end_with_parent() -> None:
    """Kill this process and its group once standard input is at its end."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
