"""Evaluation: reports, baselines and charts for every task.

`evaluate` runs the evaluator of a model's recipe; the factories (`caption_evaluator` and others)
make evaluators for new recipes.
"""

from sensorium.evaluation.captioning import answer_evaluator, caption_evaluator
from sensorium.evaluation.chart import LineSeries, heatmap, line_chart
from sensorium.evaluation.evaluate import evaluate
from sensorium.evaluation.image_generation import image_generation_evaluator
from sensorium.evaluation.prediction import prediction_evaluator
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport
from sensorium.evaluation.retrieval import evaluate_retrieval, retrieval_evaluation
from sensorium.evaluation.spec import (
    EvaluationSpec,
    Evaluator,
    Predictions,
    Validate,
    ValidationResult,
    WriteSamples,
)
from sensorium.evaluation.validate_generation import loss_validator
from sensorium.evaluation.validate_prediction import prediction_validator
from sensorium.evaluation.validate_retrieval import retrieval_validator

__all__ = [
    "EvaluationReport",
    "EvaluationSpec",
    "Evaluator",
    "LineSeries",
    "Predictions",
    "Trained",
    "Validate",
    "ValidationResult",
    "WriteSamples",
    "answer_evaluator",
    "caption_evaluator",
    "evaluate",
    "evaluate_retrieval",
    "heatmap",
    "image_generation_evaluator",
    "line_chart",
    "loss_validator",
    "prediction_evaluator",
    "prediction_validator",
    "retrieval_evaluation",
    "retrieval_validator",
]
