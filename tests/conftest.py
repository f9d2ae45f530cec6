"""What all tests share."""

import collections
import os
import signal
import sys

import hypothesis
import pytest

from made_parts import write_pretraining_part


def pytest_configure(config):
    """Without a seed hypothesis tries the same cases every time: new ones are for `make fuzz`.

    Images of containers often tell Python to keep no bytecode: hundreds of processes would each compile all the modules
    that they import, OneFlow's for 3 seconds, TensorFlow's for 11.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if config.getoption("hypothesis_seed") is None:
        hypothesis.settings.register_profile("same_cases", derandomize=True)
        hypothesis.settings.load_profile("same_cases")


def pytest_collection_modifyitems(items):
    """Puts the files with the most slow tests first: a long file that comes last would keep one of two workers idle."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def tiny_data(tmp_path):
    """A folder with one part of 12 made-up pre-training records (seq_length 32, 5 predictions, 200 words)."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_pretraining_part(folder / "part-0", 12)
    return folder


@pytest.fixture(autouse=True)
def no_rank_in_the_environment(monkeypatch):
    """OneFlow, once a test has loaded it, leaves these variables behind, and scripts that are run would heed them."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def signals_are_heeded():
    """Also where the tests run in the background of a shell, or under nohup: scripts would inherit deafness to them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="module")
def engine_as_at_the_start():
    """A script that a test has run within this process leaves its settings of the engine behind."""
    yield
    if "engine.operators" in sys.modules:
        # Not imported above: that loads OneFlow, which few tests need.
        from engine import native, operators

        operators.skip_padding(False)
        operators.use_int8(False)
        operators.compute_in(None)
        operators.sum_in_shared_memory(0)
        native.use_bfloat16(False)
