"""Two tasksets of the library `verifiers`: a price to look up with a tool, and a number to guess from a user's hints."""

import verifiers.v1 as vf


class LampData(vf.TaskData):
    price: int


class Shop(vf.Toolset[vf.ToolsetConfig, vf.State]):
    @vf.tool
    async def price(self, item: str) -> str:
        """Price of an item."""
        if item != "lamp":
            raise ValueError(f"there is no {item}")
        return "a dozen more than thirty"


class LampTask(vf.Task[LampData, vf.State, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Shop(vf.ToolsetConfig())]

    @vf.reward(weight=0.5)
    async def right(self, task, trace) -> float:
        return float(str(task.price) in trace.last_reply)

    @vf.reward
    async def brief(self, task, trace) -> float:
        return 0.5 if len(trace.last_reply) < 20 else 0.0


class LampTaskset(vf.Taskset[LampTask, vf.TasksetConfig]):
    def load(self):
        for i in range(20):
            yield LampTask(LampData(name=f"lamp {i}", prompt="What does the lamp cost?", system_prompt="Be brief.", price=42))


__all__ = ["LampTaskset"]

if __name__ == "__main__":
    Shop.run()
