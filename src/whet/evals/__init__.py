"""An agent's score, and the difference between agents, with intervals and costs."""

from whet.evals.comparison import Comparison, Row, compare
from whet.evals.evaluation import Evaluation, evaluate
from whet.evals.statistics import Difference

__all__ = ["Comparison", "Difference", "Evaluation", "Row", "compare", "evaluate"]
