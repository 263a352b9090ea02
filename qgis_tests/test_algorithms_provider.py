"""What QGIS sees of the algorithms: names, parameters, help, and what they say without an environment."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Sample, create, run
from debias_mapper import jobs
from qgis.core import (
    Qgis,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsSettings,
)

NAMES = [
    "classify_features", "classify_pixels", "classify_tiles", "detect", "environment_status", "evaluate", "segment",
    "train", "train_detector",
]  # fmt: skip
SHOWN_AT_MOST = 15


def test_the_provider_has_all_algorithms_in_three_groups(provider: Any) -> None:
    assert (provider.id(), provider.name()) == ("debias", "Debias (rare classes)")
    assert sorted(algorithm.name() for algorithm in provider.algorithms()) == NAMES
    assert {algorithm.group() for algorithm in provider.algorithms()} == {"Train", "Map", "Check"}
    for thing in (provider, *provider.algorithms()):
        assert not thing.icon().isNull()


@pytest.mark.parametrize("name", NAMES)
def test_help_names_every_parameter_and_its_example_is_right(name: str) -> None:
    algorithm = create(name)
    text = algorithm.shortHelpString()
    assert f"qgis_process run debias:{name}" in text
    used = set(re.findall(r" ([A-Z_]+)=", text))
    known = {definition.name() for definition in algorithm.parameterDefinitions()}
    assert used <= known
    needed = {
        definition.name()
        for definition in algorithm.parameterDefinitions()
        if not definition.flags() & Qgis.ProcessingParameterFlag.Optional and definition.defaultValue() is None
    }
    assert needed <= used
    assert algorithm.shortDescription().endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_dialogs_are_short_and_the_rest_is_advanced(name: str) -> None:
    algorithm = create(name)
    advanced = Qgis.ProcessingParameterFlag.Advanced
    shown = [each for each in algorithm.parameterDefinitions() if not each.flags() & advanced]
    assert len(shown) <= SHOWN_AT_MOST
    assert not algorithm.flags() & Qgis.ProcessingAlgorithmFlag.NoThreading


def test_every_output_is_declared_with_its_type() -> None:
    names = ("detect", "classify_pixels", "train", "evaluate", "environment_status")
    algorithms = {name: create(name) for name in names}  # which own their definitions
    kinds = {
        name: {each.name(): each.type() for each in algorithm.outputDefinitions()}
        for name, algorithm in algorithms.items()
    }
    assert kinds["detect"] == {"OUTPUT": "outputVector", "COUNT": "outputNumber", "COUNTS": "outputString"}
    assert kinds["classify_pixels"]["SCORES"] == "outputRaster"
    assert kinds["train"]["OUTPUT"] == "outputFile"
    assert (kinds["evaluate"]["REPORT"], kinds["evaluate"]["MACRO"]) == ("outputHtml", "outputNumber")
    assert kinds["environment_status"]["READY"] == "outputBoolean"


def test_without_an_environment_the_toolbox_is_there_and_says_what_to_do(
    sample: Sample, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(settings.ENVIRONMENT_VARIABLE)
    settings.set_folder(str(tmp_path / "no environment"))
    algorithm: QgsProcessingAlgorithm = create("detect")
    assert algorithm.canExecute()[0]
    parameters = {"INPUT": sample.scene, "MODEL": sample.detector, "OUTPUT": "TEMPORARY_OUTPUT"}
    assert algorithm.checkParameterValues(parameters, QgsProcessingContext()) == (False, jobs.NO_ENVIRONMENT)
    ran = run("environment_status")
    assert (ran.results["READY"], ran.results["SENTENCE"]) == (False, jobs.NO_ENVIRONMENT)


def test_the_status_of_an_environment_tells_devices_and_versions(tmp_path: Path) -> None:
    ran = run("environment_status", JSON=str(tmp_path / "status.json"))
    assert ran.results["READY"] is True
    assert "ready" in ran.results["SENTENCE"]
    known = json.loads(ran.results["STATUS"])
    assert json.loads((tmp_path / "status.json").read_text()) == known
    assert known["probe"]["devices"][0]["device"] == "cpu"
    assert known["versions"]["torch"] == known["probe"]["versions"]["torch"]


def test_the_status_of_a_python_without_the_library_says_so(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ENVIRONMENT_VARIABLE, "/usr/bin/python3")
    ran = run("environment_status")
    assert ran.results["READY"] is False
    assert "lacks the library torchgeo-debias" in ran.results["SENTENCE"]


def test_metadata_have_what_the_plugin_site_asks_for() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "qgis_plugin/debias_mapper/metadata.txt", encoding="utf-8")
    general = metadata["general"]
    for name in ("name", "description", "version", "author", "email", "about", "tracker", "repository"):
        assert general[name]
    assert general["qgisMinimumVersion"] == "3.40"
    assert general["hasProcessingProvider"] == "yes"
    assert (ROOT / "qgis_plugin/debias_mapper" / general["icon"]).exists()


@pytest.mark.parametrize(
    ("excluded", "text"),
    [
        (["http://intranet.example.org/"], "intranet.example.org"),
        ("http://intranet.example.org/", "intranet.example.org"),  # so Qt reads a list of one from its file
        (["http://a.example.org/", "b.example.org"], "a.example.org,b.example.org"),
    ],
)
def test_the_proxy_of_qgis_reaches_the_worker(settings: Any, excluded: Any, text: str) -> None:
    values = {
        "proxyEnabled": True, "proxyType": "HttpProxy", "proxyHost": "proxy.example.org", "proxyPort": "8080",
        "proxyUser": "me", "proxyPassword": "a b@c", "noProxyUrls": excluded,
    }  # fmt: skip
    try:
        assert settings.proxy_variables() == {}
        for name, value in values.items():
            QgsSettings().setValue(f"proxy/{name}", value)
        variables = settings.proxy_variables()
        assert variables["HTTPS_PROXY"] == "http://me:a%20b%40c@proxy.example.org:8080"
        assert variables["NO_PROXY"] == text
    finally:
        QgsSettings().remove("proxy")


def test_unknown_values_are_refused_by_qgis(sample: Sample) -> None:
    with pytest.raises(QgsProcessingException, match="METHOD"):
        run("train", INPUT=sample.scene, LABELS=sample.labels, CLASS_FIELD="kind", METHOD="magic", OUTPUT="x.tgd")
