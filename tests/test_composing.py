"""Jobs of a sweep are composed one from the other, and are what Hydra composes."""

import itertools
from collections import Counter

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from mico_exp.config.composing import SweepLoader
from mico_exp.config.typed import OPTIONS

FOLDER = {
    "experiment/weighted.yaml": "# @package _global_\nformula: {function: {w: 0.5}}\n",
    "experiment/switched.yaml": "# @package _global_\ndefaults: [override /metric: margin]\n",
    "metric/mine.yaml": "defaults: [loss, _self_]\nname: mine\n",
    "formula/following.yaml": "name: following\nfunction: ${formula_of.${metric.name}}\n",
}


@pytest.fixture
def hydra_counted(tmp_path, monkeypatch):
    for name, text in FOLDER.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    composed = Counter()
    plain = ConfigLoaderImpl.load_sweep_config

    def load(self, master, overrides):
        composed["times"] += 1
        return plain(self, master, overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", load)
    with initialize_config_dir(str(OPTIONS), version_base="1.3"):
        yield composed, tmp_path


def flags(node):
    """Flags of a node and of all below it."""
    below = [] if not OmegaConf.is_config(node) else range(len(node))
    keys = node.keys() if OmegaConf.is_dict(node) else below
    return node._metadata.flags, [flags(node._get_node(key)) for key in keys if below]


GRID = [["formula='0'", "formula=stack", "formula=lira_online"], ["metric=loss", "metric=all"]]


@pytest.mark.parametrize(
    ("varied", "fixed", "in_full"),
    [
        ([*GRID, ["scenario='inf'", "scenario=ddp"]], ["seed=3"], 1),
        ([["metric=loss", "metric=margin"]], ["+hydra.launcher.x=1", "experiment=full"], 1),
        ([["formula='0'", "formula='1'"]], ["formula.function.w=0.5"], 2),
        ([["formula='0'", "formula='1'"]], ["metric.name=loss", "metric=loss"], 2),
        ([["formula='0'", "formula='1'"]], ["experiment=weighted"], 2),
        ([["formula='0'", "formula='1'"]], ["experiment=switched"], 2),
        ([["metric=loss", "metric=mine", "metric=margin"]], [], 2),
        ([["formula='0'", "formula=following"]], ["dataset=cifar10"], 2),
        ([["dataset=digits", "dataset=cifar10"], ["formula='0'", "formula='2'"]], [], 2),
    ],
)
def test_jobs_are_what_hydra_composes(hydra_counted, varied, fixed, in_full):
    counted, folder = hydra_counted
    hydra_loader = GlobalHydra.instance().config_loader()
    master = hydra_loader.load_configuration(
        "config", [f"hydra.searchpath=[{folder}]", "hydra.job.num=5"], RunMode.MULTIRUN
    )
    OmegaConf.set_struct(master.hydra, False)
    master.hydra.overrides.hydra += ["sweep='abc'", "metrics=[loss]"]
    loader = SweepLoader(hydra_loader)
    for choices in itertools.product(*varied):
        job = [*fixed, *choices]
        before = counted["times"]
        found = loader.load_sweep_config(master, job)
        counted["found"] += counted["times"] - before
        wanted = hydra_loader.load_sweep_config(master, job)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(wanted)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(wanted)
        assert flags(found) == flags(wanted)
        found.hydra.job.num = found.hydra.job.id = 7  # a job takes its own, and leaves it alone
    assert counted["found"] == in_full
