"""Chance as a function of (seed, sample, visit): the same everywhere, and distributed as it should be."""

import math
import random
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from finetune.diffusion.chance import Draw, choice, draw, key, normal, permutation

N = 20_000
GOLDEN_KEY = 8022055708132360631
GOLDEN_DRAW = Draw(
    level=0.4211425775271116,
    place=0.24246535122519985,
    flip=False,
    drop_caption=False,
    noise_seed=6398246629999364227,
    latent_seed=1390785205530894247,
)
GOLDEN_ORDER = [4, 0, 2, 7, 1, 6, 5, 3]
GOLDEN_NOISE = [0.33669, 0.128809, 0.234462, 0.230333]


def many(seed: int = 0, caption_dropout: float = 0.0, flip: bool = False, n: int = N) -> list[Draw]:
    return [draw(seed, f"{i % 7}.png", i // 7, caption_dropout, flip) for i in range(n)]


def test_a_draw_is_the_same_in_every_version_and_process() -> None:
    """Golden: changing these values would change what a recipe trains, and break every resume."""
    assert key(0, "a.png", 0) == GOLDEN_KEY
    assert draw(3, "mug/01.jpg", 5, 0.1, True) == GOLDEN_DRAW
    assert permutation(8, 0, "order", 1) == GOLDEN_ORDER
    assert_close(normal((4,), 42), torch.tensor(GOLDEN_NOISE), rtol=0, atol=1e-6)


def test_another_process_draws_the_same() -> None:
    """Python's own hash() differs from process to process."""
    code = "from finetune.diffusion.chance import *; print(draw(1, 'a.png', 2, .5, True), permutation(5, 'x'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{draw(1, 'a.png', 2, 0.5, True)} {permutation(5, 'x')}"


def test_drawing_leaves_the_global_generators_alone_and_does_not_ask_them() -> None:
    random.seed(0), torch.manual_seed(0)
    states = random.getstate(), torch.get_rng_state()
    first = draw(0, "a", 0, 0.5, True), normal((3,), 1), permutation(9, 0)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    random.seed(1), torch.manual_seed(1)
    again = draw(0, "a", 0, 0.5, True), normal((3,), 1), permutation(9, 0)
    assert first[0] == again[0] and torch.equal(first[1], again[1]) and first[2] == again[2]


def test_levels_and_places_are_uniform_on_0_to_1() -> None:
    for values in ([d.level for d in many()], [d.place for d in many()]):
        assert min(values) >= 0 and max(values) < 1
        counts = torch.histc(torch.tensor(values), 20, 0, 1)
        chi2 = float(((counts - N / 20) ** 2 / (N / 20)).sum())
        assert chi2 < 19 + 5 * math.sqrt(2 * 19)


def test_half_of_the_visits_are_mirrored_when_flips_are_on_and_none_when_off() -> None:
    on, off = many(flip=True), many(flip=False)
    assert abs(sum(d.flip for d in on) / N - 0.5) < 4 * 0.5 / math.sqrt(N)
    assert not any(d.flip for d in off)


def test_captions_are_dropped_at_the_asked_share() -> None:
    for share in (0.0, 0.05, 0.5):
        found = sum(d.drop_caption for d in many(caption_dropout=share)) / N
        assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / N)


def test_a_setting_changes_nothing_but_what_it_is_for() -> None:
    """Switching flips or dropout on keeps levels, places and noise, so runs stay comparable."""
    for a, b in zip(many(n=200), many(n=200, caption_dropout=0.5, flip=True), strict=True):
        assert a == b._replace(flip=a.flip, drop_caption=a.drop_caption)


def test_the_choices_of_a_visit_are_independent_of_one_another() -> None:
    drawn = many(flip=True, caption_dropout=0.5)
    table = torch.tensor([[d.level, d.place, d.flip, d.drop_caption] for d in drawn])
    off = torch.corrcoef(table.T) - torch.eye(4)
    assert float(off.abs().max()) < 5 / math.sqrt(N)


def test_seed_sample_and_visit_each_change_everything() -> None:
    base = draw(0, "a", 0, 0.0, False)
    for other in (draw(1, "a", 0, 0.0, False), draw(0, "b", 0, 0.0, False), draw(0, "a", 1, 0.0, False)):
        assert len({base.level, other.level}) == len({base.noise_seed, other.noise_seed}) == 2
        assert len({base.noise_seed, base.latent_seed, other.noise_seed, other.latent_seed}) == 4
    seeds = [d.noise_seed for s in range(3) for d in many(seed=s, n=2000)]
    assert len(set(seeds)) == len(seeds)
    levels = torch.tensor([[d.level for d in many(seed=s, n=2000)] for s in range(3)])
    assert float((torch.corrcoef(levels) - torch.eye(3)).abs().max()) < 5 / math.sqrt(2000)


def test_parts_of_an_identity_do_not_run_into_one_another() -> None:
    assert len({key(1, 23), key(12, 3), key("12", "3", ""), key(123)}) == 4
    assert all(0 <= key(i) < 2**63 for i in range(1000))


def test_noise_is_standard_normal_and_the_two_noises_of_a_visit_differ() -> None:
    d = draw(0, "a", 0, 0.0, False)
    noise, latent = d.noise((4, 64, 64)), d.latent_noise((4, 64, 64))
    for x in (noise, latent):
        assert x.dtype == torch.float32 and abs(float(x.mean())) < 0.04 and abs(float(x.std()) - 1) < 0.03
        assert abs(float((x**4).mean()) - 3) < 0.2
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), latent.flatten()]))[0, 1])) < 0.04


def test_orders_are_permutations_and_every_one_is_as_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for i in range(6000):
        order = permutation(3, i)
        assert sorted(order) == [0, 1, 2]
        counts[tuple(order)] = counts.get(tuple(order), 0) + 1
    assert len(counts) == 6 and all(abs(c - 1000) < 5 * math.sqrt(1000) for c in counts.values())


# --- further choices --------------------------------------------------------------------------------------------------


GOLDEN_CHOICE = 0.604917962681508


def test_a_further_choice_has_a_golden_value_that_no_other_choice_changes() -> None:
    """Made alone, after others, in another order, or read further: the same, and the row of `Draw` with it."""
    alone = choice(3, "mug/01.jpg", 5, "caption").random()
    assert alone == GOLDEN_CHOICE
    for names in (("tags", "caption", "jitter"), ("caption",), ("jitter", "tags", "caption")):
        made = {name: [choice(3, "mug/01.jpg", 5, name).random() for _ in range(2)] for name in names}
        assert made["caption"] == [alone, alone]
        assert draw(3, "mug/01.jpg", 5, 0.1, True) == GOLDEN_DRAW


def test_choices_of_one_visit_are_independent_and_each_visit_has_its_own() -> None:
    values = [[choice(0, f"{i % 7}.png", i // 7, name).random() for i in range(N)] for name in ("caption", "tags")]
    values += [[d.level for d in many()], [d.place for d in many()]]
    seen = torch.corrcoef(torch.tensor(values, dtype=torch.float64)) - torch.eye(4)
    assert seen.abs().max() < 5 / math.sqrt(N)
    assert len(set(values[0])) == N and abs(sum(values[0]) / N - 0.5) < 5 / math.sqrt(12 * N)


@pytest.mark.parametrize("name", ["flip", "3"])
def test_a_choice_of_the_row_is_not_made_twice_nor_a_number_taken_for_a_name(name: str) -> None:
    with pytest.raises(AssertionError):
        choice(0, "a.png", 0, name)
