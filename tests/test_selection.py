import itertools
import random

import pytest

from mico_exp.selection import AUC, TPR, Candidate, select

METRICS, FORMULAS = ["confidence", "loss"], ["0", "1", "2"]


def candidate(metric, formula, tpr, auc=0.6, started=0):
    name = f"{metric}-{formula}-{started}"
    return Candidate(name, "inf", metric, formula, started, "abc", {TPR: tpr, AUC: auc})


def test_the_highest_tpr_wins_and_the_next_is_named():
    cells = [
        candidate("loss", "0", 0.2, auc=0.9),
        candidate("loss", "1", 0.3),
        candidate("confidence", "2", 0.25),
    ]
    found = select(cells, METRICS, FORMULAS)
    assert found.best is cells[1]
    assert found.runner_up is cells[2]
    assert found.compared == 3


def test_ties_go_to_auc_then_to_the_order_of_the_options():
    auc = [candidate("confidence", "0", 0.3, auc=0.6), candidate("loss", "2", 0.3, auc=0.7)]
    assert select(auc, METRICS, FORMULAS).best is auc[1]
    tied = [candidate(m, f, 0.3) for m, f in itertools.product(["loss", "confidence"], "210")]
    for seed in range(5):
        random.Random(seed).shuffle(tied)
        best = select(tied, METRICS, FORMULAS).best
        assert (best.metric, best.formula) == ("confidence", "0")


def test_only_the_newest_run_of_a_cell_counts():
    lucky_but_old = candidate("loss", "1", 0.9, started=1)
    newer = candidate("loss", "1", 0.2, started=2)
    other = candidate("loss", "0", 0.3, started=0)
    found = select([newer, lucky_but_old, other], METRICS, FORMULAS)
    assert found.best is other
    assert found.runner_up is newer
    assert found.compared == 2


def test_one_cell_has_no_runner_up():
    assert select([candidate("loss", "1", 0.2)], METRICS, FORMULAS).runner_up is None


def test_an_option_that_is_gone_comes_last_in_a_tie():
    cells = [candidate("a_removed_one", "1", 0.3), candidate("loss", "1", 0.3)]
    assert select(cells, METRICS, FORMULAS).best is cells[1]


def test_truth_of_dev_and_final_is_never_asked():
    class Guarded(dict):
        def __getitem__(self, key):
            assert key.startswith("val/")
            return super().__getitem__(key)

    figures = Guarded({TPR: 0.2, AUC: 0.6, "final/tpr_at_fpr_0.1": 1.0})
    one = Candidate("a", "inf", "loss", "1", 0, "abc", figures)
    assert select([one, candidate("loss", "0", 0.3)], METRICS, FORMULAS).best.formula == "0"


def test_nothing_to_choose_from_is_a_defect():
    with pytest.raises(IndexError):
        select([], METRICS, FORMULAS)
