"""Which members a population has, and what each of them is told."""

from collections import Counter

import pytest

from mpinn.config import load
from mpinn.errors import InputError
from mpinn.models.population import Population
from mpinn.models.sweep import Sweep, WholeSweep, Widths
from mpinn.training.choices import CHOICES, DEFAULTS


def test_members_are_numbered_by_activation_then_repetition_then_width() -> None:
    """The order of Farias et al."""
    options = Population(widths=Widths((2, 5)), activations=("tanh", "relu"), repetitions=2)
    found = [(member.activation, member.seed, member.widths) for member in options.members()]
    assert [member.number for member in options.members()] == list(range(8))
    assert found == [
        ("tanh", 0, (2,)), ("tanh", 0, (5,)), ("tanh", 1, (2,)), ("tanh", 1, (5,)),
        ("relu", 0, (2,)), ("relu", 0, (5,)), ("relu", 1, (2,)), ("relu", 1, (5,)),
    ]  # fmt: skip


def test_every_axis_is_combined_with_every_other() -> None:
    options = Population(
        widths=Widths({"from": 1, "to": 3}), layers=(1, 3), activations=("relu",),
        rates=Sweep((0.1, 0.01)), weight_decays=Sweep((0.0, 1e-3)), seeds=WholeSweep((4, 9)),
    )  # fmt: skip
    found = options.members()
    assert len({(m.widths, m.rate, m.weight_decay, m.seed) for m in found}) == len(found) == 3 * 2 * 2 * 2 * 2
    assert {m.widths for m in found} == {(1,), (2,), (3,), (1, 1, 1), (2, 2, 2), (3, 3, 3)}
    assert Counter(m.rate for m in found) == {0.1: 24, 0.01: 24}


def test_draws_are_the_members_own_and_repeat() -> None:
    draws = {"draw": "log_uniform", "low": 0.001, "high": 1.0, "seed": 3}
    few, more = (Population(widths=Widths((4,)), repetitions=n, rates=Sweep(draws)).members() for n in (400, 500))
    rates = [member.rate for member in few[:400]]
    assert rates == [member.rate for member in more[:400]]
    assert all(rate is not None and 0.001 <= rate <= 1 for rate in rates)
    # as many in each decade, to chance
    decades = Counter(int(str(f"{rate:e}").split("e")[1]) for rate in rates)
    assert len(decades) == 3
    assert all(100 < count < 170 for count in decades.values())
    other = Population(widths=Widths((4,)), repetitions=400, rates=Sweep({**draws, "seed": 4})).members()
    assert rates != [member.rate for member in other[:400]]


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({"from": 1, "to": 4}, (1, 2, 3, 4)),
        ({"from": 1, "to": 10, "step": 4}, (1, 5, 9)),
        ({"from": 0.1, "to": 0.3, "step": 0.1}, pytest.approx((0.1, 0.2, 0.3))),
        ({"from": 0.001, "to": 1.0, "count": 4, "scale": "log"}, pytest.approx((0.001, 0.01, 0.1, 1))),
        ({"from": 0.0, "to": 1.0, "count": 3}, (0, 0.5, 1)),
        ((3, 1), (3, 1)),
        ((), (None,)),
    ],
)  # fmt: skip
def test_ranges_and_lists(given: object, numbers: object) -> None:
    assert Sweep(given).axis() == numbers  # type: ignore[arg-type]


def test_whole_numbers_stay_whole() -> None:
    assert Widths({"from": 1, "to": 100, "count": 3, "scale": "log"}).axis() == (1, 10, 100)
    assert all(isinstance(value, int) for value in Widths({"from": 1, "to": 9, "count": 4}).axis())


def test_the_configuration_reads_what_it_writes() -> None:
    settings = ["model.name=population", "model.widths={from = 1, to = 9, step = 2}", "model.rates=[0.1, 0.2]",
                "model.weight_decays={draw = 'uniform', low = 0, high = 0.1}", "model.rungs=['2 epochs']"]  # fmt: skip
    config = load({}, settings, CHOICES, DEFAULTS)
    again = load(config.tables(), (), CHOICES, DEFAULTS)
    assert again == config
    assert load(config.toml(), (), CHOICES, DEFAULTS).model.members() == config.model.members()
    assert len(config.model.members()) == 5 * 2 * 2


@pytest.mark.parametrize(
    "given",
    ["{from = 1}", "{to = 1}", "5", "'a'", "{from = 1, to = 2, count = -1}", "{from = 1, to = 2, step = 0}", "[true]",
     "{from = 0, to = 2, scale = 'log', count = 2}", "{draw = 'uniform', low = 1}", "{from = 1, to = 2, high = 3}",
     "{from = 1, to = 1e9, step = 1e-3}", "{draw = 'uniform', low = 1, high = 2, seed = 'x'}", "[inf]"],
)  # fmt: skip
def test_what_is_no_sweep_is_said_with_its_path(given: str) -> None:
    with pytest.raises(InputError, match=r"^model\.rates: .*expected a list; a range"):
        load({}, ["model.name=population", f"model.rates={given}"], CHOICES, DEFAULTS)
