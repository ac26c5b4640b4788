"""Which mapping of a training checkpoint is the model, and that whatever else differs makes another model."""

import pytest
import torch
from checkpoints import opened, refused
from families import write_safetensors

from kinbase.checkpoint import Checkpoint
from kinbase.errors import CheckpointError
from kinbase.importers import pytorch


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "layers.0.weight": torch.randn(8, 4, generator=generator),
        "head.weight": torch.randn(3, 4, generator=generator),
    }


MODEL, AVERAGE = weights(1), weights(2)
MOMENTS = {0: {"exp_avg": torch.zeros(64, 64), "exp_avg_sq": torch.zeros(64, 64), "step": torch.tensor(3.0)}}
OPTIMISER = {"state": MOMENTS, "param_groups": [{"lr": 0.1}]}
BY_NAME = {"state": {"layers.0.weight": {"exp_avg": torch.zeros(99, 9), "exp_avg_sq": torch.zeros(99, 9)}}}

NESTS = {
    "flat": MODEL,
    "a counter beside it": {"net": MODEL, "step": torch.tensor(7), "best_loss": torch.tensor(0.5)},
    "a generator's state beside it": {"weights": MODEL, "rng": torch.zeros(5000, dtype=torch.uint8)},
    "an optimiser larger than it": {"agent": {"policy": MODEL}, "optimizer": OPTIMISER},
    "an optimiser by the parameters' names": {"app": {"model": MODEL, "opt": BY_NAME}},
    "an average before it": {"state_dict_ema": AVERAGE, "state_dict": MODEL},
    "an average with more in it": {"model_ema": AVERAGE | {"tied.weight": torch.zeros(9, 4)}, "model": MODEL},
    "one of a list": {"models": [{"weights": MODEL}, {"bias": torch.zeros(2)}], "losses": [1.0, 2.0]},
    "deep": {"checkpoint": {"callbacks": {"none": {}}, "trainer": {"module": MODEL}}},
}


def read(path):
    checkpoint, _, problems = opened(pytorch, path)
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint, problems


def values(checkpoint):
    found = {}
    for tensor in checkpoint.tensors:
        raw = bytearray(tensor.nbytes)
        tensor.read(0, memoryview(raw))
        found[tensor.name] = torch.frombuffer(raw, dtype=torch.float32).reshape(tensor.shape)
    return found


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_the_model_is_where_most_of_the_weights_are(tmp_path, nest):
    torch.save(nest, tmp_path / "run.pt")
    assert same(values(read(tmp_path / "run.pt")[0]), MODEL)


@pytest.mark.parametrize("key", ["averages.ema", "ema"])
def test_a_copy_is_named_and_can_be_chosen(tmp_path, key):
    path = tmp_path / "run.pt"
    torch.save({"model": MODEL, "averages": {"ema": AVERAGE}}, path)
    checkpoint, problems = read(path)
    assert same(values(checkpoint), MODEL) and checkpoint.name == "run"
    (problem,) = problems
    assert "'averages.ema' (44 elements)" in problem.message and "--key" in problem.message
    assert pytorch.recognises(f"{path}#{key}") and not pytorch.recognises(f"{tmp_path}/none.pt#{key}")
    chosen, problems = read(f"{path}#{key}")
    assert same(values(chosen), AVERAGE) and chosen.name == f"run@{key}" and problems == []
    assert chosen.source == f"{path}#{key}" and same(values(read(chosen.source)[0]), AVERAGE)
    with pytest.raises(
        CheckpointError, match=r"no state dict called 'teacher': it has 'model', 'averages\.ema'"
    ):
        list(pytorch.open(f"{path}#teacher"))


def test_a_flat_average_is_named_and_can_be_chosen(tmp_path):
    path = tmp_path / "run.pt"
    both = {f"model.{n}": t for n, t in MODEL.items()} | {f"model_ema.{n}": t for n, t in AVERAGE.items()}
    torch.save({"state_dict": both}, path)
    checkpoint, problems = read(path)
    assert len(checkpoint.tensors) == 4 and "'model_ema'" in problems[0].message
    assert same(values(read(f"{path}#model_ema")[0]), AVERAGE)


def test_a_list_of_tensors_as_large_is_said_not_to_be_read(tmp_path):
    averages = {"ema": {"decay": 0.9, "shadow_params": list(AVERAGE.values())}}
    torch.save({"model": MODEL, **averages, "optimizer": {"a": [torch.zeros(99)]}}, tmp_path / "run.pt")
    checkpoint, (problem,) = read(tmp_path / "run.pt")
    assert same(values(checkpoint), MODEL)
    assert "2 tensors without names ('ema.shadow_params')" in problem.message


def test_optimisers_and_lists_alone_are_no_model(tmp_path):
    for nest in ({"optimizer": OPTIMISER}, {"state": MOMENTS}, [torch.zeros(2)], {"step": 3}):
        torch.save(nest, tmp_path / "run.pt")
        refused(pytorch, tmp_path / "run.pt", "holds no state dict")


def test_values_that_are_not_read_are_part_of_the_identity(tmp_path):
    """Complex numbers have bytes of their own; of a sparse tensor the file's are taken."""
    for name, odd in (
        ("complex", torch.ones(2, dtype=torch.complex64)),
        ("sparse", torch.eye(3).to_sparse()),
    ):
        path = tmp_path / f"{name}.pt"
        torch.save({**MODEL, "odd": odd}, path)
        checkpoint, _ = read(path)
        assert set(checkpoint.skipped) == {"odd"}
        (blob,) = checkpoint.blobs
        raw = bytearray(blob.nbytes)
        blob.read(0, memoryview(raw))
        if name == "complex":
            assert (blob.name, blob.shape) == ("odd", (2,))
            assert torch.frombuffer(raw, dtype=torch.complex64).tolist() == [1, 1]
        else:
            assert bytes(raw) == path.read_bytes()


def test_an_average_in_a_safetensors_file_is_named_and_can_be_chosen(tmp_path):
    from kinbase.importers import safetensors as one_file

    both = {f"model.{n}": t for n, t in MODEL.items()} | {f"ema_model.{n}": t for n, t in AVERAGE.items()}
    path = write_safetensors(tmp_path / "run.safetensors", both)
    checkpoint, _, (problem,) = opened(one_file, path)
    assert len(checkpoint.tensors) == 4 and "'ema_model'" in problem.message
    chosen, _, problems = opened(one_file, f"{path}#ema_model")
    assert same(values(chosen), AVERAGE) and chosen.name == "run@ema_model" and problems == []
    assert same(values(opened(one_file, chosen.source)[0]), AVERAGE)
    with pytest.raises(
        CheckpointError, match="no tensors under 'x': their names begin with 'ema_model', 'model'"
    ):
        list(one_file.open(f"{path}#x"))
