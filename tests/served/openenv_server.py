"""Small environments behind OpenEnv's own server. Run by an interpreter that has `openenv` (or `openenv-core`, its older name):

    python openenv_server.py KIND SESSIONS      prints the port, then serves until it is killed
    python openenv_server.py init DIRECTORY     the same for the environment that the command `openenv init` writes there

KIND is `guess` (a number, two fields of action), `echo` (one field of text), `shop` (MCP tools) or `mute` (no reward ever).
"""

import importlib
import random
import socket
import subprocess
import sys
from pathlib import Path

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from parent import end_with_parent
from pydantic import Field


class GuessAction(Action):
    """Guess the hidden number."""

    number: int = Field(ge=0, le=9, description="the guess")
    sure: bool = False


class Hint(Observation):
    hint: str
    left: int = 0


class Guess(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = State(step_count=0)

    def get_metadata(self):
        return EnvironmentMetadata(name="guess", description="Guess a number from 0 to 9.")

    def reset(self, seed=None, episode_id=None, top=9, broken=False, **kwargs):
        self.broken = broken
        self.number, self._state = random.Random(seed).randint(0, top), State(episode_id=episode_id, step_count=0)
        return Hint(hint="guess", left=4)

    def step(self, action, timeout_s=None, **kwargs):
        self._state.step_count += 1
        left = 4 - self._state.step_count
        if action.number == self.number:
            return Hint(hint="right", left=left, done=True, reward=1.0)
        if self.broken:
            raise RuntimeError("the numbers ran out")
        hint = "higher" if self.number > action.number else "lower"
        return Hint(hint=hint, left=left, done=not left, reward=-0.1)

    @property
    def state(self):
        return self._state


class Say(Action):
    message: str


class Heard(Observation):
    echo: str


class Echo(Guess):
    """Repeats what it is told and pays for the word `stop`."""

    def reset(self, seed=None, episode_id=None, **kwargs):
        return Heard(echo=f"seed {seed}")

    def step(self, action, timeout_s=None, **kwargs):
        stop = action.message == "stop"
        return Heard(echo=action.message, done=stop, reward=1.0 if stop else None)


class Mute(Echo):
    def step(self, action, timeout_s=None, **kwargs):
        return Heard(echo=action.message, done=True)


class Shop(MCPEnvironment):
    """A price to look up and to name, by MCP tools; naming it ends the episode."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        server = FastMCP("shop")
        self.prices, self.said = {}, None

        @server.tool
        def price(item: str) -> str:
            """Price of an item."""
            return f"{item}: {self.prices[item]}"

        @server.tool
        def answer(price: int) -> str:
            """Say what the lamp costs."""
            self.said = price
            return "noted"

        super().__init__(server)

    def reset(self, seed=None, episode_id=None, **kwargs):
        self.prices, self.said = {"lamp": random.Random(seed).randint(10, 99)}, None
        return Observation(metadata={"hello": 1})

    async def step_async(self, action, timeout_s=None, **kwargs):
        seen = await super().step_async(action, timeout_s=timeout_s, **kwargs)
        return self._paid(seen)

    def _paid(self, seen):
        if isinstance(seen, CallToolObservation) and self.said is not None:
            seen.done, seen.reward = True, float(self.said == self.prices["lamp"])
        return seen

    def _step_impl(self, action, timeout_s=None, **kwargs):
        raise ValueError(f"unknown action {action!r}")

    @property
    def state(self):
        return State(step_count=0)


KINDS = {
    "guess": (Guess, GuessAction, Hint),
    "echo": (Echo, Say, Heard),
    "mute": (Mute, Say, Heard),
    "shop": (Shop, CallToolAction, CallToolObservation),
}


def written(directory):
    """The app of a new environment, as OpenEnv itself writes one."""
    command = [Path(sys.executable).with_name("openenv"), "init", "lamp_env", "--output-dir", directory]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    sys.path.insert(0, directory)
    return importlib.import_module("lamp_env.server.app").app


if __name__ == "__main__":
    end_with_parent()
    kind, argument = sys.argv[1:]
    app = written(argument) if kind == "init" else create_app(*KINDS[kind], max_concurrent_envs=int(argument))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])
