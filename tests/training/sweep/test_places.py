"""What each trial gets, on machines of all kinds."""

from types import SimpleNamespace

import pytest

from genreward_fast.errors import UserError
from genreward_fast.training.sweep.cluster import Cluster
from genreward_fast.training.sweep.machines import Resources
from genreward_fast.training.sweep.places import Places


class Machines(Cluster):
    """A cluster of these machines, without Ray."""

    def __init__(self, *machines):
        self._machines = [{"Resources": machine} for machine in machines]

    def machines(self):
        return self._machines


def trials(device="auto"):
    return [SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(device=device)))]


@pytest.mark.parametrize(
    ("machines", "places", "device", "expected", "at_once"),
    [
        ([{"CPU": 8.0}], {}, "auto", (0, 2), 4),
        ([{"CPU": 1.0}], {}, "auto", (0, 1), 1),
        ([{"CPU": 64.0, "GPU": 8.0}], {}, "auto", (1, 1), 8),
        ([{"CPU": 64.0, "GPU": 8.0}], {"cpus_per_trial": 16}, "cuda", (1, 16), 4),
        ([{"CPU": 64.0, "GPU": 8.0}], {}, "cpu", (0, 2), 32),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 2.0}], {"gpus_per_trial": 0.5}, "auto", (0.5, 1), 4),
        ([{"CPU": 8.0, "GPU": 3.0}, {"CPU": 4.0, "GPU": 2.0}], {"gpus_per_trial": 2.0}, "auto", (2, 1), 2),
    ],
)
def test_what_a_trial_gets(machines, places, device, expected, at_once):
    cluster = Machines(*machines)
    resources = Places(**places).resources(cluster, trials(device))
    assert resources == Resources(*expected)
    assert cluster.capacity(resources) == at_once


@pytest.mark.parametrize(
    ("places", "device", "says"),
    [
        ({"gpus_per_trial": 3.0}, "auto", "no machine has 3 GPUs and 1 CPU cores"),
        ({"cpus_per_trial": 5.0}, "auto", "no machine has 1 GPUs and 5 CPU cores"),
        ({"gpus_per_trial": 0.0}, "cuda", "no trial would have a GPU"),
    ],
)
def test_more_than_any_machine_has(places, device, says):
    cluster = Machines({"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0})
    with pytest.raises(UserError, match=says):
        Places(**places).resources(cluster, trials(device))
