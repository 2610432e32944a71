"""A taskset of the library `verifiers` whose environment plays the user: it gives hints until a number is found."""

import verifiers.v1 as vf


class GuessData(vf.TaskData):
    number: int


class GuessTask(vf.Task[GuessData, vf.State, vf.TaskConfig]):
    pass


class GuessConfig(vf.EnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[GuessConfig]):
    async def run(self, task, agents):
        hints = 0
        async with agents.agent.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated:
                said = segment.last_reply
                if said == "break":
                    raise RuntimeError("the user has left")
                if said == str(task.data.number) or hints == 3:
                    break
                hints += 1
                number = int(said) if said.isdigit() else -1
                segment = await interaction.turn("higher" if task.data.number > number else "lower")
        if said != "silence":
            interaction.trace.record_reward("found", float(said == str(task.data.number)), 1.0)
        interaction.trace.record_metric("hints", hints)


class GuessTaskset(vf.Taskset[GuessTask, vf.TasksetConfig]):
    def load(self):
        for number in range(10):
            yield GuessTask(GuessData(prompt="Guess a number from 0 to 9.", number=number))


__all__ = ["GuessEnv", "GuessTaskset"]
