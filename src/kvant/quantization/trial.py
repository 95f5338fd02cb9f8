"""Trying a step on samples: what is fitted to some of them is kept if it leaves less noise on others."""

from __future__ import annotations

from kvant.graph import Graph
from kvant.quantization.correct import Mean, correct, float_means
from kvant.quantization.progress import Progress
from kvant.quantization.recipe import Recipe
from kvant.quantization.reestimate import reestimated, reestimates
from kvant.quantization.simulate import Plan
from kvant.quantization.statistics import Sample
from kvant.quantization.ties import makes_values
from kvant.quantization.tune import tune
from kvant.quantization.yardstick import Yardstick
from kvant.runtime import Decision

# Plans that miss the target by less than this are not tuned: measured, that made one of 23 dB worse.
TUNABLE_DB = 4.0


class Trial:
    """Samples that biases and weights are fitted to, and a yardstick of samples held out, on which choices are made."""

    def __init__(
        self, fitted: list[Sample], more: list[Sample], yardstick: Yardstick, recipe: Recipe, show: Progress
    ) -> None:
        self.fitted = fitted
        self.learnt = [*fitted, *more]
        self.yardstick = yardstick
        self.recipe = recipe
        self.show = show
        self.history: list[Decision] = []
        self._means: tuple[Graph, dict[str, list[Mean]]] | None = None

    def note(self, step: str, taken: bool, before: float, after: float, detail: str = "") -> None:
        """Remember what was tried, and the signal to noise in dB without it and with it."""
        self.history.append(Decision(step, taken, round(before, 2), round(after, 2), detail))

    def better(self, step: str, plan: Plan, anew: Plan, detail: str = "") -> Plan:
        """``anew`` if it leaves less noise than ``plan`` on the samples held out, else ``plan``."""
        before, after = self.yardstick.measure(plan), self.yardstick.measure(anew)
        self.note(step, after > before, before, after, detail)
        return anew if after > before else plan

    def correct(self, plan: Plan, *, compensate: bool = False) -> Plan:
        """Biases (and weights) of ``plan`` corrected, if the recipe wants it."""
        if not self.recipe.correct_bias:
            return plan
        # At fast effort no weights are rounded anew, which would want the values before the clamp.
        of_clamped = self.recipe.effort == "fast"
        # Best effort may learn afterwards, and learns more from where means of all samples lead; weights that were
        # rounded again for 8 bits seldom learn.
        robust = self.recipe.effort != "best" or self.recipe.rounds_for_8_bits
        if self._means is None or self._means[0] is not plan.graph:
            self._means = plan.graph, float_means(plan.graph, self.fitted, of_clamped)
        return correct(
            plan,
            self.fitted,
            self._means[1],
            self.show,
            compensate=compensate,
            of_clamped=of_clamped,
            robust=robust,
        )

    def corrected(self, plan: Plan) -> Plan:
        """``plan`` with corrected biases, if they leave less noise on the samples held out.

        Where 8 bits clip what is rare and large, the mean error comes from a few places, and a bias moves all.
        """
        anew = self.correct(plan)
        if anew is plan:
            return plan
        learns = any(weight.scheme.rounding == "learned" for weight in plan.weights.values())
        step = "learned rounding and bias correction" if learns else "bias correction"
        return self.better(step, plan, anew, wide_share(plan))

    def compensated(self, plan: Plan) -> Plan:
        """``plan`` with weights rounded anew for what its activations leave of their inputs, if that leaves less noise.

        Rounding that looks at a layer's inputs also fits its weights to them: it takes back part of what the layers
        before it lost, which is most where activations have few bits.
        """
        wanted = self.recipe.compensate and self.recipe.correct_bias
        if not wanted or not any(weight.rounds_anew for weight in plan.weights.values()):
            return plan
        anew = self.correct(plan, compensate=True)
        return self.better("compensated rounding", plan, anew, wide_share(plan))

    def reestimated(self, plan: Plan) -> Plan:
        """``plan`` with channels' means and spreads as in float, if that leaves less noise on the samples held out."""
        if self.recipe.effort == "fast" or not self.recipe.correct_bias or not reestimates(plan):
            return plan
        anew = reestimated(plan, self.fitted, self.show)
        return self.better("batch-norm re-estimation", plan, anew, wide_share(plan))

    def tuned(self, plan: Plan, movable: set[str]) -> Plan:
        """``plan`` after it learned, if that leaves less noise on the samples held out and there was too much before.

        Args:
            movable: the tensors whose scales may become any number.
        """
        before, target = self.yardstick.measure(plan), self.recipe.target_sqnr
        if target is not None and before >= target - TUNABLE_DB:
            return plan
        anew = tune(plan, self.learnt, self.yardstick, movable, self.show)
        return plan if anew is plan else self.better("tuning", plan, anew)


def wide_share(plan: Plan) -> str:
    """How many activations have 16 bits."""
    made = [plan.types[name].dtype for name in makes_values(plan.graph)]
    return f"{made.count('int16')} of {len(made)} activations in 16 bits"
