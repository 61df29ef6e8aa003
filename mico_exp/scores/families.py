"""Families of metrics, by what they look at, and the work that computes each."""

from mico_exp.scores.gradients import GradientMetric
from mico_exp.scores.inference import Work
from mico_exp.scores.metrics import LogitMetric
from mico_exp.scores.perturbation import PerturbedMetric, PerturbedWork
from mico_exp.scores.white_box import GradientWork

Metric = LogitMetric | GradientMetric | PerturbedMetric
LOGITS, GRADIENTS, PERTURBATIONS = "logits", "gradients", "perturbations"
WORKS = {LOGITS: Work, GRADIENTS: GradientWork, PERTURBATIONS: PerturbedWork}


def family_of(metric: Metric) -> str:
    """Family of a metric: ``logits``, ``gradients`` or ``perturbations``."""
    if isinstance(metric, GradientMetric):
        return GRADIENTS
    return PERTURBATIONS if isinstance(metric, PerturbedMetric) else LOGITS


def is_told_members(metric: Metric) -> bool:
    """Tell whether a metric is to be told known members of the very model."""
    return isinstance(metric, GradientMetric) and metric.disclosed
