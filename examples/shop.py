"""An environment of one's own: a shop with two tools. Train on it with `whet run grpo --env examples/shop.py:Shop`."""

import random

from whet import Env, Task, tool

ITEMS = ["lamp", "mug", "rug", "vase", "clock", "chair"]


class Shop(Env):
    instructions = "Look the price up, then answer."
    max_turns = 4

    def reset(self, task: Task) -> str:
        rng = random.Random(task.seed)
        self.prices = {item: rng.randint(1, 9) for item in ITEMS}
        self.wanted, self.seen = rng.choice(ITEMS), False
        return f"How much is the {self.wanted}?"

    @tool
    def price(self, item: str) -> str:
        "Look up what an item costs."
        self.seen |= item == self.wanted
        return f"The {item} costs {self.prices[item]}." if item in self.prices else f"There is no {item} here."

    @tool
    def answer(self, price: int) -> str:
        "Say what the wanted item costs."
        partial = 0.3 if self.seen else 0.0  # having looked is worth something, so that there is a way to climb
        return self.finish("Thank you.", reward=1.0 if price == self.prices[self.wanted] else partial)
