"""Runs by MLflow's client: of a server, and of whatever database is not the folder's own."""

import time
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

from mico_exp.runs.database import mlflow
from mico_exp.runs.record import Entries, LoggedRun

PAGE = 1000  # runs that are sent at once


class Client:
    """The runs at an address; the methods are those of `own.Own`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @cached_property
    def mlflow(self) -> Any:
        """MLflow's own client."""
        return mlflow().MlflowClient(self.uri)

    def experiment(self, name: str) -> tuple[str, str, str] | None:
        """Number, stage and place of artifacts of an experiment; None if it is not there."""
        if (found := self.mlflow.get_experiment_by_name(name)) is None:
            return None
        return str(found.experiment_id), str(found.lifecycle_stage), str(found.artifact_location)

    def create(self, experiment: str, tags: Mapping[str, str]) -> str:
        """Begin a run of an experiment; says its id."""
        return str(self.mlflow.create_run(experiment, tags=dict(tags)).info.run_id)

    def log(self, run: str, entries: Entries) -> None:
        """Write all that a run logs."""
        now, kinds = int(time.time() * 1000), mlflow().entities
        self.mlflow.log_batch(
            run,
            metrics=[kinds.Metric(key, value, now, 0) for key, value in entries.metrics.items()],
            params=[kinds.Param(key, str(value)) for key, value in entries.params.items()],
            tags=[kinds.RunTag(key, value) for key, value in entries.tags.items()],
        )

    def end(self, run: str, status: str) -> None:
        """Write what a run ended as, and when."""
        self.mlflow.set_terminated(run, status)

    def tag(self, experiment: str, name: str, value: str) -> None:
        """Write a tag of an experiment."""
        self.mlflow.set_experiment_tag(experiment, name, value)

    def read(self, experiment: str, status: str, tags: Mapping[str, str]) -> list[LoggedRun]:
        """Runs of an experiment that are of a status and carry these tags, the newest first."""
        found: list[LoggedRun] = []
        token: str | None = None
        while True:
            page = self.mlflow.search_runs(
                [experiment],
                _where(status, tags),
                max_results=PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += [
                LoggedRun(d.params, d.metrics, d.tags, i.run_id, i.start_time)
                for d, i in ((run.data, run.info) for run in page)
            ]
            if not (token := page.token):
                return found

    def count(
        self,
        experiment: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        without: Mapping[str, str],
    ) -> int | None:
        """0 if no finished run carries these tags and params but none of the tags `without`.

        None where there are some: all would have to be sent to be counted.
        """
        wanted = _where("FINISHED", tags, params, without)
        return None if len(self.mlflow.search_runs([experiment], wanted, max_results=1)) else 0


def _where(
    status: str,
    tags: Mapping[str, str],
    params: Mapping[str, str] = MappingProxyType({}),
    without: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Say in MLflow's words: of a status, with tags and params, and no tag of `without`."""
    conditions = [f"attributes.status = '{status}'"]
    conditions += [f"tags.{key} = '{value}'" for key, value in tags.items()]
    conditions += [f"params.{key} = '{value}'" for key, value in params.items()]
    conditions += [f"tags.{key} != '{value}'" for key, value in without.items()]
    return " and ".join(conditions)
