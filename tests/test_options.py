"""Which cells have a meaning, what they are called, and when they are another experiment."""

import pytest
from commands import run
from hydra.core.override_parser.overrides_parser import OverridesParser

from mico_exp.common.errors import InputError
from mico_exp.config import cells, choices, codes, metrics, options
from mico_exp.config.metrics import all_metrics, extracted_metrics

GRADIENTS = {"grad_alignment", "grad_norm", "kfac", "kfac_high", "kfac_low", "representer"}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["metric=loss", "formula=rmia_online"], "compares probabilities, which scores of metric="),
        (["metric=loss", "formula=stack"], "formula=stack: it combines metrics, so it takes"),
        (["metric=all", "formula='0'"], "formula=0: it takes one metric, not metric=all"),
        (["metric=loss", "formula=conformal"], "scenario=inf keeps them"),
        (["metric=kfac_disclosed"], "metric=kfac_disclosed: it needs disclosed training sets"),
        (["metric=kfac_disclosed", "scenario=lo"], "scenario=lo keeps them"),
        (["metric=logit", "formula=rmia_disclosed", "scenario=ddp"], "compares probabilities"),
    ],
)
def test_cells_without_meaning(composed, overrides, reason):
    with pytest.raises(InputError, match=reason):
        cells.check_cell(composed(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["metric=confidence", "formula=rmia_online"],
        ["metric=all", "formula=stack"],
        ["metric=kfac_disclosed", "formula=lira_shrunk", "scenario=ddp"],
        ["metric=confidence", "formula=rmia_disclosed", "scenario=ddp"],
        ["metric=loss", "formula=conformal", "scenario='inf'", "scenario.disclose_training=true"],
    ],
)
def test_cells_with_meaning(composed, overrides):
    cells.check_cell(composed(*overrides))


def test_a_need_that_nobody_knows(composed):
    with pytest.raises(InputError, match="`needs` of 0 must be of all, probability, disclosure"):
        cells.check_cell(composed("formula='0'", "+formula.needs=[gradients]"))


def jobs(metrics, formulas, scenario="inf"):
    return [
        [f"metric={m}", f"formula='{f}'", f"scenario={scenario}"] for m in metrics for f in formulas
    ]


def test_a_sweep_keeps_its_order_and_says_what_it_leaves_out(composed, caplog):
    composed()
    grid = jobs(["loss", "confidence", "all"], ["0", "rmia_online", "stack"], "'inf'")
    kept = cells.sensible_cells(grid, "skip")
    assert kept == [grid[0], grid[3], grid[4], grid[8]]
    with pytest.raises(InputError) as refused:
        cells.sensible_cells(grid, "refuse")
    lines = str(refused.value).splitlines()
    assert lines[0] == "These cells have no meaning, and so nothing is begun:"
    assert sum(line.startswith("  formula=") for line in lines) == 4
    assert next(line for line in lines if "formula=stack" in line).endswith("(2 of 9 jobs)")
    assert cells.sensible_cells(kept, "refuse") == kept
    with pytest.raises(InputError, match="nothing is begun") as all_refused:
        cells.sensible_cells(grid[1:3], "skip")
    assert "skip sweeps" not in str(all_refused.value)
    with pytest.raises(InputError, match="must be refuse or skip, got maybe"):
        cells.sensible_cells(grid, "maybe")


def test_disclosure_makes_the_difference(composed):
    composed()
    grid = jobs(["kfac_disclosed", "loss"], ["1", "conformal"], "ddp")
    assert cells.sensible_cells(grid, "refuse") == grid
    grid = jobs(["kfac_disclosed", "loss"], ["1", "conformal"], "lo")
    assert cells.sensible_cells(grid, "skip") == [grid[2]]


def metrics_of(cfg):
    """Metrics of the cell that is chosen."""
    metric = choices.choice(cfg, "metric")
    return metrics.metrics_of(metric, cfg.scenario.name, cfg.scenario.disclose_training)


def code(cfg, group):
    return codes.code(choices.choice(cfg, group), metrics_of(cfg))


def test_all_metrics_of_a_scenario(composed):
    composed()
    every = all_metrics(disclosed=False)
    assert every.keys() >= GRADIENTS | {"loss", "logit"}
    assert "all" not in every
    told = all_metrics(disclosed=True)
    assert told.keys() - every.keys() == {"kfac_disclosed"}
    cfg = composed("metric=all", "formula=stack")
    assert list(metrics_of(cfg)) == list(every)
    cfg = composed("metric=all", "formula=stack", "metrics=[loss,kfac]")
    assert list(metrics_of(cfg)) == ["loss", "kfac"]


def test_metrics_that_a_scenario_refuses_are_not_left_out_silently(composed):
    told = "metrics=[loss,kfac_disclosed]"
    with pytest.raises(InputError, match="`metrics` names kfac_disclosed: it needs disclosed"):
        metrics_of(composed("metric=all", "formula=stack", told))
    cfg = composed("metric=all", "formula=stack", told, "scenario=ddp")
    assert list(metrics_of(cfg)) == ["loss", "kfac_disclosed"]
    with pytest.raises(InputError, match="`metrics` must name at least one"):
        extracted_metrics(composed("metrics=null"))
    cfg = composed("metrics=gradients")
    assert extracted_metrics(cfg).keys() == GRADIENTS


def test_labels_tell_what_was_changed(composed):
    cfg = composed("metric=kfac", "metric.function.damping=0.5", "formula=rmia_offline")
    assert choices.choice(cfg, "metric").label == "kfac[damping=0.5]"
    assert choices.choice(cfg, "formula").label == "rmia_offline"
    cfg = composed("metric=confidence", "formula=rmia_offline", "formula.function.a=0.5")
    assert choices.choice(cfg, "formula").label == "rmia_offline[a=0.5]"
    assert choices.choice(cfg, "formula").changes == ["formula.function.a=0.5"]
    cfg = composed("metric=loss", "formula=conformal", "formula.function.base.w=1.0")
    assert choices.choice(cfg, "formula").label == "conformal[base.w=1.0]"
    cfg = composed("metric=all", "formula=stack", "metrics=[loss,logit]")
    assert choices.choice(cfg, "metric").label == "all[metrics=[loss,logit]]"
    assert choices.choice(composed("formula=midpoint"), "formula").label == "0"


def test_the_present_code_of_what_was_run(composed):
    """A run can be chosen only if its option, changed as it was, still does the same."""
    for overrides in (
        ["metric=confidence", "formula=rmia_offline", "formula.function.a=0.5"],
        ["metric=all", "formula=stack", "metrics=[loss,logit]"],
        ["metric=kfac", "metric.function.damping=0.5", "formula='2'"],
        ["metric=representer", "metric.function.reference=null", "formula=offset"],
        ["metric=loss", "formula=offset", "formula.function.w=counts"],
        ["metric=all", "formula=stack_search", "formula.function.cs=[0.1,1.0]"],
    ):
        cfg = composed(*overrides)
        for group in ("metric", "formula"):
            name = choices.choice(cfg, group).label.partition("[")[0]
            changed = tuple(choices.choice(cfg, group).changes)
            assert code(cfg, group) == codes.present_code(group, name, changed)
            if changed:
                assert code(cfg, group) != codes.present_code(group, name)
    with pytest.raises(InputError, match="there is no metric=gone here"):
        codes.present_code("metric", "gone")


def test_two_formulas_of_one_function_are_two_experiments(composed):
    codes = {
        name: code(composed(f"formula='{name}'"), "formula")
        for name in ("0", "1", "2", "watson", "lira_online", "lira_online_pooled")
    }
    assert len(set(codes.values())) == len(codes)
    assert code(composed("formula=midpoint"), "formula") == codes["0"]


SMALL = [
    "dataset.len_training=120",
    "dataset.len_challenge=10",
    "dataset.phases={train: 5, dev: 2, final: 2}",
    "dataset.recipe.steps=20",
    "plots=off",
]


def test_a_sweep_with_cells_without_meaning_begins_nothing(tmp_path):
    grid = ["metric=loss,confidence", "formula=0,rmia_online", "scenario=inf", *SMALL, "-m"]
    done = run("mico_exp", *grid, cwd=tmp_path, status=1)
    assert "formula=rmia_online: it compares probabilities" in done.stderr
    assert "(1 of 4 jobs)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
    done = run("mico_exp", *grid, "hydra.sweeper.meaningless=skip", cwd=tmp_path)
    assert done.stdout.count("validation TPR") == 3
    one = run("mico_exp", "metric=loss", "formula=rmia_online", cwd=tmp_path, status=1)
    assert "inf/loss/rmia_online: formula=rmia_online: it compares" in one.stderr


def test_the_full_experiment_leaves_out_what_has_no_meaning(tmp_path):
    """Of the metrics and formulas named, on models of a scenario that discloses training sets."""
    grid = ["metric=kfac_disclosed,confidence,all", "formula=glob([?,rmia_d*,stack])"]
    models = ["scenario=ddp", "dataset.phases={train: 10, dev: 2, final: 2}", "plots=off"]
    small = [text for text in SMALL if "phases" not in text and "plots" not in text]
    done = run("mico_exp", "experiment=full", *grid, *models, *small, "-m", cwd=tmp_path)
    assert "7 of 15 cells have no meaning, and are left out" in done.stdout
    cells = {line.split()[4].rstrip(":") for line in done.stdout.splitlines() if "TPR@" in line}
    plain = {f"{m}/{f}" for m in ("kfac_disclosed", "confidence") for f in "012"}
    expected = plain | {"confidence/rmia_disclosed", "all/stack"}
    assert cells == {f"digits_ddp/{cell}" for cell in expected}


def test_the_full_experiment_is_every_metric_with_every_formula(composed):
    """None is forgotten but readable names, and metrics of the label alone and of canaries."""
    cfg = composed("experiment=full")
    params = cfg.hydra.sweeper.params
    swept = {group: parsed(f"{group}={params[group]}", group) for group in ("metric", "formula")}
    every = set(options.option_names("metric"))
    assert every - set(swept["metric"]) == {"correct", "agreement", "canary_projection"}
    assert set(swept["metric"]) < every
    named = {
        option: composed(f"formula='{option}'").formula.name
        for option in options.option_names("formula")
    }
    own = [option for option, name in named.items() if option == name]
    assert swept["formula"] == [name for name in own if not name.startswith("lira_script")]
    assert cfg.metrics == "all"


def parsed(text, group):
    override = OverridesParser.create().parse_override(text)
    return override.value().filter(options.option_names(group))
