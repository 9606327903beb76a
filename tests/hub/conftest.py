"""Fixtures that point the Hub's client libraries at a stand-in; `stand_in.py` says what tests can do with it."""

import importlib
import os
import sys
import time
from types import SimpleNamespace

import pytest
from stand_in import WRITE_TOKEN, StandInHub

CLEARED = ["HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_OIDC_RESOURCE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"]
CACHES = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "HF_TOKEN_PATH"]
CACHES += ["HF_DATASETS_CACHE", "HF_DATASETS_DOWNLOADED_DATASETS_PATH", "HF_DATASETS_EXTRACTED_DATASETS_PATH"]
CACHES += ["HF_MODULES_CACHE"]
# Modules that call `time.sleep` before they try again.
RETRYING = ["huggingface_hub.utils._http", "huggingface_hub.file_download"]
RETRYING += ["datasets.arrow_dataset", "datasets.dataset_dict", "datasets.utils.file_utils"]


@pytest.fixture(scope="session")
def hub_server():
    """The running server, with whatever the last test left in it: use `hub`."""
    server = StandInHub()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def hub(hub_server, tmp_path_factory, monkeypatch):
    """An empty stand-in Hub to which this process and its subprocesses talk, logged in with the write token."""
    # Imported while still offline: the libraries read their environment once.
    import datasets
    import huggingface_hub
    from transformers import dynamic_module_utils

    hub_server.reset()
    home = tmp_path_factory.mktemp("hf_home")
    _set_environment(monkeypatch, hub_server.url, home)
    _redirect_client(monkeypatch, huggingface_hub, hub_server.url, home)
    _redirect_datasets(monkeypatch, datasets.config, hub_server.url, home)
    _hurry(monkeypatch)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(home / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    _forget(huggingface_hub)
    yield hub_server
    hub_server.faults.reset()
    _forget(huggingface_hub)


@pytest.fixture
def hub_environment(hub):
    """Environment of a subprocess that talks to the stand-in Hub and shares the test's caches."""
    return dict(os.environ)


def _set_environment(monkeypatch, url, home):
    for name in CLEARED + CACHES:
        monkeypatch.delenv(name, raising=False)
    wanted = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": WRITE_TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)


def _redirect_client(monkeypatch, hub_client, url, home):
    constants = hub_client.constants
    old_home = constants.HF_HOME
    for name, value in list(vars(constants).items()):
        if isinstance(value, str) and value.startswith(old_home):
            monkeypatch.setattr(constants, name, str(home) + value[len(old_home) :])
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(home / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(hub_client.hf_api.api, "endpoint", url)


def _hurry(monkeypatch):
    """Let the clients' retries wait 10 ms at most."""
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(min(seconds, 0.01))})
    for name in RETRYING:
        monkeypatch.setattr(importlib.import_module(name), "time", quick)


def _redirect_datasets(monkeypatch, config, url, home):
    wanted = {
        "HF_ENDPOINT": url,
        "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
        "HF_UPDATE_DOWNLOAD_COUNTS": False,
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
        "EXTRACTED_DATASETS_PATH": home / "datasets" / "downloads" / "extracted",
    }
    for name, value in wanted.items():
        monkeypatch.setattr(config, name, value)


def _forget(hub_client):
    """Drop what the libraries remember in memory: connections, file systems, who we are, code from repositories."""
    hub_client.close_session()
    hub_client.HfFileSystem.clear_instance_cache()
    hub_client.hf_api.api._whoami_cache.clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
