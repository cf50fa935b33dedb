"""Which device and precision a training gets, on machines that this one is not."""

from __future__ import annotations

import msgspec
import pytest
import torch

from serving.training.dataset import split_by_time
from serving.training.device import DeviceError, Place, choose_device, choose_precision
from serving.training.settings import Precision
from serving.training.train import train
from tests.test_serving.chain import SETTINGS, markov_log


def yes() -> bool:
    return True


def no() -> bool:
    return False


@pytest.mark.parametrize(
    ("wanted", "has_cuda", "found"),
    [("auto", True, "cuda:1"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda:1")],
)
def test_the_gpu_with_the_process_number_where_there_is_one(
    wanted: str, has_cuda: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(choose_device(wanted, yes if has_cuda else no)) == found


def test_a_gpu_that_is_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(DeviceError, match=r'trainer\.device="cuda": PyTorch sees no GPU here'):
        choose_device("cuda", no)


@pytest.mark.parametrize(
    ("wanted", "device", "has_bf16", "found"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("fp32", "cuda", True, "fp32"),
        ("fp16", "cuda", True, "fp16"),
        ("auto", "cpu", True, "fp32"),
        ("fp32", "cpu", True, "fp32"),
    ],
)
def test_precision(wanted: Precision, device: str, has_bf16: bool, found: str) -> None:
    assert choose_precision(wanted, torch.device(device), yes if has_bf16 else no) == found


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_a_cpu_has_no_lower_precision(wanted: Precision) -> None:
    with pytest.raises(DeviceError, match=f'trainer.precision="{wanted}" needs a GPU'):
        choose_precision(wanted, torch.device("cpu"))


def test_products_are_computed_as_the_place_says_and_only_fp16_scales_gradients() -> None:
    """Autocast and scaler in force, on the CPU's own autocast."""
    a = torch.randn(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        place = Place(precision=precision)  # type: ignore[arg-type]
        with place.autocast():
            assert (a @ a).dtype == dtype
        assert not place.scaler().is_enabled()
    assert Place(precision="fp16").scaler().is_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_the_chain_too(precision: Precision) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    settings = msgspec.structs.replace(SETTINGS, device="cuda", precision=precision)
    trained = train(split_by_time(markov_log(users=250), settings), settings)
    assert trained.ndcg_at_10 > 0.5
    assert next(trained.network.parameters()).device.type == "cpu"
