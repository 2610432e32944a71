"""An agent's score, and the difference between agents, with intervals and costs."""

from whet.evals.compare import Comparison, Row, compare
from whet.evals.evaluate import Evaluation, evaluate
from whet.evals.statistics import Difference

__all__ = ["Comparison", "Difference", "Evaluation", "Row", "compare", "evaluate"]
