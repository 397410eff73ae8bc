"""Folders that the tests of `attnc bench` share."""

from __future__ import annotations

import pytest
from benched import CAPPED, TEXT

import attnc
from attnc.bench.launches import launches, open_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "tiny"
    attnc.build(attnc.check(TEXT), place)
    return place


@pytest.fixture(scope="session")
def known(folder):
    found, skipped = launches(open_folder(folder))
    assert skipped == []
    return {launch.words + " both ways" * (not launch.mix.form.causal): launch for launch in found}


@pytest.fixture(scope="session")
def capped(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench") / "capped"
    attnc.build(attnc.check(CAPPED), place)
    return launches(open_folder(place))[0][0]
