"""What the adapters share. The adapters themselves need checkouts, named by GENREWARD_PEERS (see the last test)."""

import os
import sys
import time
from pathlib import Path

import pytest

from genreward_fast.bench.contestant import Spec, Unavailable
from genreward_fast.bench.peers import add_checkout, require, settings, stand_in


def test_settings_are_attributes_with_references_and_numbers():
    config = settings({"model": {"units": 8, "lr": "4e-5", "mlp": {"units": "${model.units}", "names": ["a"]}}}).model
    assert config.mlp.units == 8
    assert config.lr == 4e-5
    assert config.mlp.names == ["a"]
    config.mlp.units = 9
    assert config.mlp["units"] == 9
    with pytest.raises(AttributeError):
        _ = config.missing


def test_stand_ins_import_and_refuse_to_be_used(monkeypatch):
    for name in ("no_such_logger", "no_such_logger.writers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    stand_in(["no_such_logger", "no_such_logger.writers", "json"])
    import no_such_logger.writers

    class Derived(no_such_logger.writers.Writer):  # as wrappers of environments do
        pass

    with pytest.raises(Unavailable):
        Derived()
    import json

    assert json.loads("1") == 1  # one that is there stays what it is
    for name in ("no_such_logger", "no_such_logger.writers"):
        del sys.modules[name]


def test_missing_things_are_named(tmp_path):
    with pytest.raises(Unavailable, match=r"has no dreamer\.py"):
        add_checkout(str(tmp_path), "dreamer.py")
    with pytest.raises(Unavailable, match="no_such_package"):
        require("json", "no_such_package")


@pytest.mark.skipif("GENREWARD_PEERS" not in os.environ, reason="GENREWARD_PEERS names no folder of checkouts")
@pytest.mark.parametrize(
    ("adapter", "checkout", "size"),
    [("r2dreamer", "r2dreamer", "12M"), ("dreamerv3-torch", "dreamerv3-torch", "12M"), ("torchrl", "rl", "tiny")],
)
def test_adapters_run_the_real_checkouts(adapter, checkout, size, tmp_path):
    from genreward_fast.bench.agent import timed

    folder = Path(os.environ["GENREWARD_PEERS"]) / checkout
    spec = Spec(
        adapter=adapter, size=size, device="cpu", seconds=0.01, batch_size=2, batch_length=4, imagination=3,
        acting=(2,), envs=2, train_ratio=1.0, checkout=str(folder),
    )  # fmt: skip
    begin = time.monotonic()
    result = timed(adapter, spec)
    assert "error" not in result, result["error"]
    assert 0 < result["s to the first update"] < time.monotonic() - begin
    assert result["update ms"] > 0
    assert result["act 2 ms"] > 0
    if adapter == "r2dreamer":
        assert result["parameters"] == 10492618  # as many as ours of that size
