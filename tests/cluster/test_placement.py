"""Who finds a node, and what a person is told when somebody does not."""

from __future__ import annotations

import pytest

from stream_odml.cluster.placement import ClusterTooSmall, Node, Role, check_placement, matches, roles
from stream_odml.config.stream import parse_config

GPU, CPU = {"kind": "gpu"}, {"kind": "cpu"}
NODES = [Node("10.0.0.1", 4, 1, GPU), Node("10.0.0.2", 2, 0, CPU)]


def test_training_on_the_gpu_node_and_serving_beside_it() -> None:
    config = parse_config(
        {
            "cluster": {"workers": 1, "cpus_per_worker": 2, "gpus_per_worker": 1, "worker_labels": GPU,
                        "cpus_per_indexer": 0.5, "indexer_labels": CPU},
            "service": {"replicas": 2, "num_cpus": 0.5, "labels": CPU},
        }
    )  # fmt: skip
    check_placement(roles(config), NODES)
    with pytest.raises(
        ClusterTooSmall, match=r"serving: 1 of 2 find a node; each asks for 0\.5 CPU"
    ) as reported:
        check_placement(roles(config), [NODES[0], Node("10.0.0.2", 1, 0, CPU)])
    assert "`service.labels`" in str(reported.value)
    assert "10.0.0.2         0 of 1 CPU  [kind=cpu]" in str(reported.value)


def test_cpus_that_suffice_in_all_but_on_no_single_node_are_refused() -> None:
    training = Role("training", "cluster.worker_labels", 1, cpus=3)
    with pytest.raises(
        ClusterTooSmall, match=r"training: 0 of 1 find a node; each asks for 3 CPU on one node"
    ):
        check_placement([training], [Node("a", 2), Node("b", 2)])


def test_a_label_that_no_node_has_is_named_with_the_command_that_gives_it() -> None:
    serving = Role("serving", "service.labels", 1, 0.5, selector={"zone": "b"})
    with pytest.raises(ClusterTooSmall, match=r"no node has that label.*`ray start --labels zone=b`"):
        check_placement([serving], NODES)


def test_a_missing_gpu_is_named() -> None:
    training = Role("training", "cluster.worker_labels", 2, 1, gpus=1)
    with pytest.raises(ClusterTooSmall, match=r"training: 1 of 2 find a node; each asks for 1 CPU and 1 GPU"):
        check_placement([training], NODES)


def test_who_is_bound_to_a_node_is_placed_before_who_is_free() -> None:
    free = Role("reading", "cluster.cpus_per_read", 4, 1)
    bound = Role("serving", "service.labels", 2, 1, selector=CPU)
    check_placement([free, bound], NODES)


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [("gpu", True), ("!gpu", False), ("in(cpu, gpu)", True), ("!in(cpu,gpu)", False), ("tpu", False)],
)
def test_selectors_mean_what_they_mean_to_ray(wanted: str, holds: bool) -> None:
    assert matches(GPU, {"kind": wanted}) is holds
