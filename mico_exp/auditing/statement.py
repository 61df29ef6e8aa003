"""What is said of a scenario: its claim, the ceiling, the floor, and a verdict in one line."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mico_exp.auditing.games import ADD_REMOVE, REPLACE_ONE
from mico_exp.results.scoring import RANKING_FPR

MOST_APART = 0.02  # of an ε that is claimed and another that ought to be the same
SHOWN = f"tpr_at_fpr_{RANKING_FPR}"
ASSUMES = {
    "one_run": "nothing",
    "one_run_gaussian": "a Gaussian trade-off",
    "one_run_accountant": "the accountant's trade-off, with other noise",
    "clopper_pearson": "nothing; one canary a model",
    "gaussian": "a Gaussian trade-off; one canary a model",
    "accuracy": "nothing; one canary a model, in by a fair coin",
    "accuracy_gaussian": "a Gaussian trade-off; one canary a model, in by a fair coin",
}


@dataclass(frozen=True)
class Claim:
    """What is claimed of models: (ε, δ) of add/remove, and what is known of how they came about.

    accounted: ε at δ by the accountant, of the noise trained with; None where that is not known.
    replace_one: the same of replace-one. recorded: ε that the models tell.
    noise_multiplier, sample_rate, steps: of the mechanism.
    """

    epsilon: float
    delta: float
    accounted: float | None = None
    replace_one: float | None = None
    recorded: str | None = None
    noise_multiplier: float | None = None
    sample_rate: float | None = None
    steps: int | None = None

    def of(self, relation: str) -> tuple[float, float]:
        """(ε, δ) that is claimed where neighbours are of that relation.

        Where the mechanism is not known, or is not one of the ε that is claimed, two steps of
        add/remove lead to any record's swap, with 2 ε and (1 + e^ε) δ; see Vadhan 2017, lemma 2.2.
        """
        if relation == ADD_REMOVE:
            return self.epsilon, self.delta
        if self.replace_one is not None and self.is_accounted:
            return self.replace_one, self.delta
        swapped = self.epsilon + math.log(self.delta)  # log of e^ε δ
        return 2 * self.epsilon, min(self.delta + math.exp(min(swapped, 0.0)), 1.0)

    @property
    def is_accounted(self) -> bool:
        """The accountant says what is claimed, to 2 %."""
        if self.accounted is None:
            return False
        return abs(self.accounted - self.epsilon) <= MOST_APART * self.epsilon

    @property
    def is_exceeded(self) -> bool:
        """The accountant says more than is claimed, by more than 2 %."""
        return self.accounted is not None and self.accounted > (1 + MOST_APART) * self.epsilon


@dataclass(frozen=True)
class Bounded:
    """What one method proves, at δ of the statement.

    epsilon: 0 where nothing is proven. mu: of Gaussian DP; None of a method that says none.
    share: of the bits, whose margins are the largest, that were guessed. tries: attacks that were
        paid for.
    """

    method: str
    epsilon: float
    mu: float | None
    cell: str
    share: float
    bits: int
    guesses: int
    right: int
    tries: int

    @property
    def assumes(self) -> str:
        """What the bound holds of."""
        return ASSUMES[self.method]


@dataclass(frozen=True)
class Estimated:
    """Median of the posterior of ε and the ends of its middle; infinite as None. No bound."""

    epsilon: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Attack:
    """The attack that the floor is of.

    chosen_on, judged_on: the models that it was chosen by, and those that the bound is of.
    models: of the latter. tpr: at FPR 0.1 on the last phase of them.
    """

    cell: str
    game: str
    chosen_on: str
    judged_on: str
    models: int
    tpr: float


@dataclass(frozen=True)
class Statement:
    """All that is said of one scenario.

    claimed: None where nothing is. floor: what proves ε, and methods all that were computed.
    ceilings: relation → TPR by the figures' names; empty where nothing is known.
    contradicted: whether the claim is refused at the confidence's significance.
    """

    scenario: str
    claimed: Claim | None
    confidence: float
    delta: float
    relation: str
    floor: Bounded
    methods: tuple[Bounded, ...]
    estimate: Estimated
    ceilings: Mapping[str, Mapping[str, float]]
    attack: Attack
    contradicted: bool

    @property
    def mu(self) -> float:
        """What the first of the methods that speak of μ proves; 0 where none does."""
        return next((one.mu for one in self.methods if one.mu is not None), 0.0)

    @property
    def verdict(self) -> str:
        """One line."""
        proven = f"the attack proves ε ≥ {self.floor.epsilon:.2f}"
        if self.floor.epsilon == 0:
            proven = "the attack proves no ε above 0"
        told = f"at FPR {RANKING_FPR} it gets {self.attack.tpr:.3f}"
        if allowed := self.ceilings.get(ADD_REMOVE):
            told += f" of the {allowed[SHOWN]:.3f} that add/remove allows"
        return f"{self._claim}; {proven}; {told}"

    @property
    def _claim(self) -> str:
        if self.claimed is None:
            return "no ε is claimed"
        kind = "contradicts" if self.contradicted else "consistent with"
        swapped = self.claimed.replace_one
        known = (
            "σ is not known"
            if swapped is None
            else f"replace-one {swapped:.2f} at the σ trained with"
        )
        if self.claimed.is_exceeded:
            known = f"the accountant says {self.claimed.accounted:.1f}; {known}"
        return f"{kind} ε = {self.claimed.epsilon:g} ({known})"

    def told(self) -> dict[str, Any]:
        """Write it for `audits/<challenge>.json`."""
        methods = {one.method: _bound(one) for one in self.methods}
        return {
            "scenario": self.scenario,
            "claimed": None if self.claimed is None else asdict(self.claimed),
            "contradicted": self.contradicted,
            "lower": {
                "epsilon": self.floor.epsilon,
                "mu": self.mu,
                "method": self.floor.method,
                "confidence": self.confidence,
                "delta": self.delta,
                "relation": self.relation,
                "models": self.attack.models,
                "bits": self.floor.bits,
                "guesses": self.floor.guesses,
                "right": self.floor.right,
                "tries": self.floor.tries,
            },
            "methods": methods,
            "estimate": asdict(self.estimate),
            "ceiling": dict(self.ceilings.get(ADD_REMOVE, {})) or None,
            "ceiling_replace_one": dict(self.ceilings.get(REPLACE_ONE, {})) or None,
            "attack": _attack(self.attack),
            "verdict": self.verdict,
        }


def _bound(one: Bounded) -> dict[str, Any]:
    told = asdict(one)
    return {**{key: told[key] for key in told if key != "method"}, "assumes": one.assumes}


def _attack(one: Attack) -> dict[str, Any]:
    told = asdict(one)
    return {**{key: told[key] for key in told if key != "tpr"}, SHOWN: one.tpr}
