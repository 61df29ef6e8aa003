"""The published LiRA script's own figures, against its algorithm written out record by record."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from mico_exp.attacks.evidence import Evidence
from mico_exp.attacks.lira_script import LiraScript
from mico_exp.challenge.points import ChallengePoints
from mico_exp.common import terminal
from mico_exp.common.errors import InputError
from mico_exp.results.cell import evaluate
from mico_exp.results.scoring import roc
from mico_exp.scores.table import Scores

MODELS, RECORDS = 14, 25


def pool(members, seed=0):
    """A pool in which so many models were trained on each record."""
    random = np.random.default_rng(seed)
    order = random.random((MODELS, RECORDS)).argsort(axis=0)
    keep = order < np.broadcast_to(members, RECORDS)
    scores = random.normal(size=RECORDS) * 2 + random.normal(size=keep.shape) + keep
    records = np.arange(RECORDS) + 100
    of_phase = {"train": np.broadcast_to(records, keep.shape)}
    points = ChallengePoints(of_phase, records, keep, keep)
    return Evidence({"logit": Scores(scores, {"train": scores})}, points, np.zeros(RECORDS, int))


def written_out(evidence, target, online, fix_variance):
    """A target's records one after another, higher = more member-like."""
    others = [m for m in range(MODELS) if m != target]
    keep, scores = evidence.points.is_member, evidence.only.shadow
    columns = {True: [], False: []}
    for record in range(RECORDS):
        for side, values in columns.items():
            values.append([scores[m, record] for m in others if keep[m, record] == side])
    cut = {side: min(map(len, values)) for side, values in columns.items()}
    kept = {side: [row[: cut[side]] for row in values] for side, values in columns.items()}
    found = []
    for record in range(RECORDS):
        density = {}
        for side, rows in kept.items():
            spread = np.std(rows[record])
            if fix_variance:
                spread = np.std(rows if not online else kept[True])
            middle = np.median(rows[record])
            density[side] = norm.logpdf(scores[target, record], middle, spread + 1e-30)
        found.append(density[True] - density[False] if online else -density[False])
    return found


@pytest.fixture(autouse=True)
def unsaid():
    terminal.warn_once.cache_clear()


@pytest.mark.parametrize("members", [MODELS // 2, np.arange(RECORDS) % 9 + 3])
@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("fix_variance", [True, False])
def test_the_scripts_figures(members, online, fix_variance):
    evidence = pool(members)
    result = evaluate(evidence, LiraScript(online, fix_variance), {})
    expected = np.array(
        [written_out(evidence, target, online, fix_variance) for target in range(MODELS)]
    )
    found = LiraScript(online, fix_variance)(evidence)["train"]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9)
    assert found.fallback_rate == 0
    curve = roc(evidence.points.solution, expected)
    assert result.figures["val/auc"] == pytest.approx(curve.auc, abs=1e-9)
    assert result.figures["val/tpr_at_fpr_0.1"] == pytest.approx(curve.tpr_at(0.1), abs=1e-9)


def test_models_without_scores_take_no_part(caplog):
    evidence = pool(MODELS // 2)
    shadow = evidence.only.shadow.copy()
    shadow[3] = np.nan
    scores = Scores(shadow, {"train": shadow})
    found = LiraScript()(replace(evidence, scores={"logit": scores}))["train"].scores
    kept = np.delete(np.arange(MODELS), 3)
    points = replace(
        evidence.points,
        of_phase={"train": evidence.points.of_phase["train"][kept]},
        is_member=evidence.points.is_member[kept],
        solution=evidence.points.solution[kept],
    )
    rest = Scores(shadow[kept], {"train": shadow[kept]})
    expected = LiraScript()(Evidence({"logit": rest}, points, evidence.labels))["train"].scores
    np.testing.assert_allclose(found[kept], expected, rtol=1e-12)


def test_a_pool_out_of_balance_is_told_once_and_whose_record_it_is(caplog):
    members = np.full(RECORDS, MODELS // 2)
    LiraScript()(pool(members))
    assert not caplog.records
    members[6] = 3
    with caplog.at_level(logging.WARNING):
        for fix_variance in (False, True):
            LiraScript(fix_variance=fix_variance)(pool(members))
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("record 106 has 3 in model(s), so the published LiRA script looks at no")
    assert "6.8 on average" in told


@pytest.mark.parametrize(
    ("few", "online", "told"),
    [
        (1, True, r"record 104 has 1 in model\(s\), and .* needs one of every record beside"),
        (MODELS - 1, True, r"record 104 has 1 out model\(s\)"),
        (MODELS, False, r"record 104 has 0 out model\(s\)"),
    ],
)
def test_a_record_without_models_is_refused(few, online, told):
    members = np.full(RECORDS, MODELS // 2)
    members[4] = few
    with pytest.raises(InputError, match=told):
        LiraScript(online=online)(pool(members))


def test_offline_no_in_model_is_needed():
    members = np.full(RECORDS, MODELS // 2)
    members[4] = 0
    assert np.isfinite(LiraScript(online=False)(pool(members))["train"].scores).all()
