import itertools
import math

import numpy as np
import pytest

from tvm_int8.quantization.optimal_step import MAX_BITS, optimal_step

# Max 1960, table II, for 2 to 32 levels of a Gaussian; Jain, *Fundamentals of Digital Image Processing*, 1989, for 256.
GAUSSIAN_STEPS = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 8: 0.0308}
GAUSSIAN_ERRORS = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154, 5: 0.003495}
# Uniform quantisers of a Laplacian: Jayant and Noll, *Digital Coding of Waveforms*, 1984.
LAPLACIAN_STEPS = {1: 1.414, 2: 1.087, 3: 0.731, 4: 0.461, 5: 0.280}
LAPLACIAN_SQNRS = {1: 3.01, 2: 7.07, 3: 11.44, 4: 15.96, 5: 20.60}


@pytest.mark.parametrize(("bits", "step"), GAUSSIAN_STEPS.items())
def test_gaussian_steps_are_the_published_ones(bits, step):
    assert optimal_step("gaussian", bits)[0] == pytest.approx(step, abs=6e-5 if bits > 1 else 6e-4)


@pytest.mark.parametrize(("bits", "error"), GAUSSIAN_ERRORS.items())
def test_gaussian_errors_are_the_published_ones(bits, error):
    assert 10 ** (-optimal_step("gaussian", bits)[1] / 10) == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize("bits", LAPLACIAN_STEPS)
def test_laplacian_steps_are_the_published_ones(bits):
    step, sqnr = optimal_step("laplacian", bits)
    assert step == pytest.approx(LAPLACIAN_STEPS[bits], abs=6e-4)
    assert sqnr == pytest.approx(LAPLACIAN_SQNRS[bits], abs=6e-3)


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_a_uniform_density_gains_six_decibels_a_bit(bits):
    step, sqnr = optimal_step("uniform", bits)
    assert step * 2**bits == pytest.approx(2 * math.sqrt(3))
    assert sqnr == pytest.approx(6.0206 * bits, rel=1e-5)


@pytest.mark.parametrize("density", ["gaussian", "laplacian"])
def test_more_bits_give_smaller_steps_and_less_than_six_decibels_each(density):
    found = [optimal_step(density, bits) for bits in range(1, MAX_BITS + 1)]
    for (step, sqnr), (finer, better) in itertools.pairwise(found):
        assert finer < step
        assert 4.0 < better - sqnr < 6.03


@pytest.mark.parametrize(("density", "draw"), [("gaussian", "standard_normal"), ("laplacian", "laplace")])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_the_promised_error_is_that_of_drawn_values_and_no_other_step_is_better(density, draw, bits):
    values = getattr(np.random.default_rng(0), draw)(size=400_000)
    values /= math.sqrt(2) if density == "laplacian" else 1.0

    def sqnr(step):
        level = np.clip(np.floor(values / step) + 0.5, -(2**bits - 1) / 2, (2**bits - 1) / 2)
        return -10 * math.log10(np.mean((values - level * step) ** 2))

    step, promised = optimal_step(density, bits)
    assert sqnr(step) == pytest.approx(promised, abs=0.2)
    assert sqnr(step) > max(sqnr(0.85 * step), sqnr(1.15 * step))


@pytest.mark.parametrize("bits", [0, 17, -3])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="expected 1 to 16"):
        optimal_step("gaussian", bits)


def test_an_unknown_density():
    with pytest.raises(ValueError, match=r"'cauchy'.*'uniform', 'gaussian', 'laplacian'"):
        optimal_step("cauchy", 8)
