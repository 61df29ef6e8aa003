import itertools
import json
import random
from dataclasses import asdict, replace

import numpy as np
import pytest

from mico_exp.common.errors import InputError
from mico_exp.results.selection import (
    Candidate,
    auc_within_one_se,
    highest,
    make_rule,
    newest,
    selected,
)
from mico_exp.results.statistics import Comparison, Estimate, Interval, compare

METRICS, FORMULAS = ["confidence", "loss"], ["0", "1", "2"]


def candidate(metric, formula, started=0, **figures):
    name = f"{metric}-{formula}-{started}"
    return Candidate(name, "inf", metric, formula, started, "abc", figures)


def test_only_the_newest_run_of_a_cell_counts():
    old, new = candidate("loss", "1", started=1), candidate("loss", "1", started=2)
    other = candidate("loss", "0", started=0)
    assert newest([new, old, other], METRICS, FORMULAS) == [other, new]


def test_cells_come_in_the_order_of_the_options_and_removed_ones_last():
    cells = [candidate(m, f) for m, f in itertools.product(["old", *METRICS], ["9", *FORMULAS])]
    for seed in range(5):
        random.Random(seed).shuffle(cells)
        found = [(c.metric, c.formula) for c in newest(cells, METRICS, FORMULAS)]
        expected = itertools.product([*METRICS, "old"], [*FORMULAS, "9"])
        assert found == list(expected)


def test_a_rule_by_its_name():
    cells = [candidate("loss", "0"), candidate("confidence", "1"), candidate("new", "1")]
    assert make_rule("max", cells, [], []) is highest
    assert make_rule("auc_one_se", cells, [], []) is auc_within_one_se
    rule = make_rule("one_se", cells, ["loss", "confidence"], ["1", "0"])
    tpr, error = np.array([[0.3, 0.28, 0.29]]), np.full((1, 3), 0.05)
    assert rule(tpr, tpr, error) == [1]  # formula 1 before 0; then what is listed
    assert rule(tpr, tpr, error / 4) == [2]
    assert rule(tpr, tpr, error / 100) == [0]
    with pytest.raises(
        InputError, match=r"`selection\.rule` must be one of max, one_se, auc_one_se, got best"
    ):
        make_rule("best", cells, [], [])


@pytest.fixture(scope="module")
def judged():
    generator = np.random.default_rng(0)
    truth = np.tile([True, False], (30, 20))
    strength = {"0": 0.3, "1": 1.0, "2": 0.95}
    cells = [candidate("loss", formula) for formula in FORMULAS]
    noise = generator.normal(size=truth.shape)
    predictions = [(truth, noise + strength[c.formula] * truth) for c in cells]
    return selected(cells, compare(predictions, highest, count=200, halvings=20)), predictions


def test_the_verdicts(judged):
    found, _ = judged
    assert found.best.formula == "1"
    assert found.verdict.cell == "loss/1"
    assert [v.cell for v in found.cells] == ["loss/0", "loss/1", "loss/2"]
    weak, chosen, near = found.cells
    assert chosen.difference == 0
    assert chosen.like_chosen
    assert not weak.like_chosen
    assert weak.difference_interval[0] > 0
    assert weak.tpr == pytest.approx(chosen.tpr - weak.difference)
    assert found.alike == (["loss/2"] if near.like_chosen else [])
    assert sum(v.probability_best for v in found.cells) == pytest.approx(1)
    assert found.procedure_interval[0] < found.procedure < found.procedure_interval[1]


def test_a_verdict_repeats_what_the_comparison_says_of_its_cell():
    comparison = Comparison(
        tpr=np.array([0.1, 0.2, 0.3]),
        auc=np.array([0.51, 0.52, 0.53]),
        tpr_interval=np.array([[0.01, 0.11], [0.02, 0.22], [0.03, 0.33]]),
        standard_error=np.array([0.001, 0.002, 0.003]),
        chosen=1,
        probability_best=np.array([0.2, 0.5, 0.3]),
        difference=np.array([0.1, 0.0, -0.1]),
        difference_interval=np.array([[0.05, 0.15], [0.0, 0.0], [-0.2, 0.05]]),
        procedure=Estimate(0.17, Interval(0.12, 0.19)),
    )
    cells = [candidate("loss", formula) for formula in FORMULAS]
    found = selected(cells, comparison)
    assert found.best is cells[1]
    assert found.verdict is found.cells[1]
    assert [asdict(verdict) for verdict in found.cells] == [
        {
            "cell": f"loss/{formula}",
            "run_id": f"loss-{formula}-0",
            "tpr": (0.1, 0.2, 0.3)[i],
            "tpr_interval": ((0.01, 0.11), (0.02, 0.22), (0.03, 0.33))[i],
            "auc": (0.51, 0.52, 0.53)[i],
            "difference": (0.1, 0.0, -0.1)[i],
            "difference_interval": ((0.05, 0.15), (0.0, 0.0), (-0.2, 0.05))[i],
            "probability_best": (0.2, 0.5, 0.3)[i],
            "like_chosen": (False, True, True)[i],
        }
        for i, formula in enumerate(FORMULAS)
    ]
    assert found.alike == ["loss/2"]
    assert (found.procedure, found.procedure_interval) == (0.17, (0.12, 0.19))
    alone = selected(cells, replace(comparison, procedure=None))
    assert (alone.procedure, alone.procedure_interval) == (None, None)


def test_it_can_be_written_down(judged):
    found, _ = judged
    again = json.loads(json.dumps(asdict(found)))
    assert again["best"]["run_id"] == "loss-1-0"
    assert again["cells"][0]["tpr_interval"] == list(found.cells[0].tpr_interval)


def test_truth_of_dev_and_final_is_never_asked(judged):
    _, predictions = judged

    class Guarded(dict):
        def __getitem__(self, key):
            raise AssertionError(key)

    cells = [
        Candidate(str(i), "inf", "loss", formula, 0, "abc", Guarded({"final/tpr_at_fpr_0.1": 1.0}))
        for i, formula in enumerate(FORMULAS)
    ]
    comparison = compare(predictions, highest, count=100, halvings=4)
    assert selected(newest(cells, METRICS, FORMULAS), comparison).best.formula == "1"
