"""Keyed noise: the generator's known answers, independence of layout, and its distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stack.util import keyed

# Random123's kat_vectors for philox4x32-10: counter, key, output.
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
DRAWS = {"normal": keyed.normal, "uniform": keyed.uniform}
each_draw = pytest.mark.parametrize("name", DRAWS)


def draw(
    name: str, positions: Tensor, shape: tuple[int, ...] = (3, 2), **changes: int | str
) -> Tensor:
    key = {"seed": 1, "iteration": 2, "role": "z"} | changes
    return DRAWS[name](shape, positions=positions, **key)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, output) -> None:
    assert tuple(int(word) for word in keyed.philox4x32(counter, key)) == output


@each_draw
def test_a_sample_depends_on_its_position_alone(name: str) -> None:
    whole = draw(name, torch.arange(64))
    for positions in (torch.tensor([17]), torch.tensor([40, 17, 3]), torch.randperm(64)):
        assert torch.equal(draw(name, positions), whole[positions])


class Made(TorchDispatchMode):
    """Devices on which tensors were made or copied from."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **kwargs or {})
        tensors = (value for value in (*args, found) if isinstance(value, Tensor))
        self.devices.update(value.device.type for value in tensors)
        return found


@each_draw
def test_nothing_is_copied_to_the_device(name: str) -> None:
    """A copy from pageable memory holds up the host until the GPU has caught up."""
    positions = torch.empty(4, dtype=torch.int64, device="meta")
    with Made() as made:
        draw(name, positions, iteration=2**40)
    assert made.devices == {"meta"}


def test_draws_keep_their_bits() -> None:
    """Runs go on with the numbers that they began with."""
    found = draw("uniform", torch.tensor([0, 2**31]), (2,), iteration=2**32 + 7)
    expected = [[1064993375, 1051682220], [1064677364, 1064581649]]
    assert found.view(torch.int32).tolist() == expected


@each_draw
def test_a_longer_draw_begins_like_a_shorter_one(name: str) -> None:
    short = draw(name, torch.arange(4), (5,))
    assert torch.equal(draw(name, torch.arange(4), (11,))[:, :5], short)
    assert draw(name, torch.arange(4), ()).shape == (4,)
    assert short.dtype == torch.float32


def ks_distance(values: Tensor, cdf: Tensor) -> float:
    """Kolmogorov-Smirnov distance of sorted values whose cdf is given, times sqrt(n)."""
    n = len(values)
    grid = torch.arange(1, n + 1, dtype=torch.float64) / n
    return torch.maximum((cdf - grid).abs(), (cdf - grid + 1 / n).abs()).max().item() * n**0.5


def test_uniform_numbers_are_uniform() -> None:
    values = draw("uniform", torch.arange(2000), (50,)).flatten().double().sort().values
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / 1e5) ** 0.5)
    assert ks_distance(values, values) < 1.95  # exceeded by one honest draw in a thousand


def test_normal_numbers_are_normal() -> None:
    values = draw("normal", torch.arange(2000), (50,)).flatten().double().sort().values
    assert values.mean().item() == pytest.approx(0, abs=4 * 1e5**-0.5)
    assert values.var().item() == pytest.approx(1, abs=4 * (2 / 1e5) ** 0.5)
    assert ks_distance(values, torch.special.ndtr(values)) < 1.95


@each_draw
@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"iteration": 3}, {"iteration": 2 + 2**32}, {"role": "eps/score"}],
    ids=str,
)
def test_other_keys_give_uncorrelated_numbers(name: str, change: dict[str, int | str]) -> None:
    positions = torch.arange(1000)
    one, other = draw(name, positions), draw(name, positions, **change)
    assert not torch.equal(one, other)
    rows = torch.stack((one.flatten(), other.flatten()))
    assert abs(torch.corrcoef(rows)[0, 1].item()) < 4 / math.sqrt(rows.shape[1])


@each_draw
def test_neighbouring_positions_and_elements_are_uncorrelated(name: str) -> None:
    values = draw(name, torch.arange(2001), (5,))
    bound = 4 / math.sqrt(10000)
    for one, other in ((values[1:], values[:-1]), (values[1:, 1:], values[1:, :-1])):
        rows = torch.stack((one.flatten(), other.flatten()))
        assert abs(torch.corrcoef(rows)[0, 1].item()) < bound
