"""Hears what a process and its children ask of the network: names looked up, addresses called."""

import os
import sys

from mico_exp import SILENT

SITECUSTOMIZE = """
import ipaddress, os, sys

HOST = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}

def outside(host):
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host not in (None, "", "localhost")

def hear(event, arguments):
    if event not in HOST:
        return
    where = arguments[HOST[event]]
    if event in ("socket.connect", "socket.sendto"):
        if not isinstance(where, tuple):  # a socket of the file system
            return
        where = where[0]
    where = where.decode() if isinstance(where, bytes) else where
    if outside(where):
        with open(os.environ["HEARD"], "a") as file:
            file.write(f"{event} {where} by {sys.argv[:1]}\\n")

sys.addaudithook(hear)
"""
# MLflow is silent where it finds one of these, and what this process has set is no user's wish.
SILENCING = ("CI", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS", "CIRCLECI", "GITLAB_CI", "JENKINS_URL")
SILENCING += ("TRAVIS", "TF_BUILD", "BITBUCKET_BUILD_NUMBER", "CODEBUILD_BUILD_ARN")
SILENCING += ("BUILDKITE", "TEAMCITY_VERSION", "CLOUD_RUN_EXECUTION", "DO_NOT_TRACK")
SILENCING += ("RUNBOT_HOST_URL", "RUNBOT_BUILD_NAME", "RUNBOT_WORKER_ID")


def listening(folder):
    """Environment for `commands.run` under which `heard(folder)` tells what was asked."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (folder / "heard").touch()
    return {
        **dict.fromkeys((*SILENCING, *SILENT, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")),
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
        "HEARD": str(folder / "heard"),
        "XDG_CONFIG_HOME": str(folder / "config"),
    }


def heard(folder):
    """What was asked of other machines, a line each."""
    return (folder / "heard").read_text().splitlines()
