"""Whether the bounds of an audit are right, how near to the truth they are, and how quick.

    python benchmarks/audit_validity.py            # some minutes
    python benchmarks/audit_validity.py --peers    # also three peers, from temporary folders

Null: scores that say nothing, the choice among 200 cells and 13 numbers of guesses included. Known
truth: randomised response and the Gaussian mechanism, 10,000 bits. A bound may be above the truth
in 5 % of the repetitions.
"""

import argparse
import functools
import importlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.special import expit, ndtr
from scipy.stats import binom

from mico_exp.auditing import bounds, curves, one_run
from mico_exp.auditing.counts import Counts, each
from mico_exp.auditing.floor import SHARES

ALPHA, DELTA = 0.05, 1e-5
CELLS, REPETITIONS, BITS, MANY = 200, 1000, 500, 10_000
PEERS = {
    "jax-privacy": ["jax-privacy==2.0.0"],
    "tensorflow-empirical-privacy": [
        *("tensorflow-empirical-privacy==0.1.0", "immutabledict==2.2.5"),
        *("statsmodels==0.14.6", "patsy==1.0.2"),
    ],
    "opake-auditing": [
        *("opake-auditing==0.16.1", "opake-base==0.16.1", "opake-engine==0.16.1"),
        "optree==0.20.0",
    ],
}


def guesses_of(bits):
    return np.maximum(np.round(np.array(SHARES) * bits), 1).astype(int)


def right_by_share(margins):
    """Right guesses (…, 13) among the largest margins (…, bits)."""
    order = np.argsort(-np.abs(margins), axis=-1)
    right = np.cumsum(np.take_along_axis(margins > 0, order, axis=-1), axis=-1)
    return right[..., guesses_of(margins.shape[-1]) - 1]


def one_run_bounds(delta, significance):
    return {
        "one run, (ε, δ)": lambda c: one_run.epsilon(c, delta, significance),
        "one run, Gaussian f-DP": lambda c: one_run.mu(c, significance),
    }


def chosen(found, right, guesses):
    """Place (R,) of the highest bound, or of what is right most clearly where none is above 0."""
    clear = (2 * right - guesses) / np.sqrt(guesses)
    return np.where(found > 0, found, clear / 1e6 - 1).reshape(len(found), -1).argmax(axis=1)


def null_one_run(g):
    """How often one-run bounds are above 0 on noise: chosen on validation, and paid for."""
    margins = (g.normal(size=(2, CELLS, BITS)) for _ in range(REPETITIONS))
    right = np.stack([right_by_share(one) for one in margins])  # (R, 2, cells, shares)
    guesses, tries = guesses_of(BITS), CELLS * len(SHARES)
    started, rows = time.perf_counter(), []
    for name, bound in one_run_bounds(DELTA, ALPHA).items():
        place = chosen(each(bound, BITS, guesses, right[:, 0]), right[:, 0], guesses)
        taken = right[:, 1].reshape(REPETITIONS, -1)[np.arange(REPETITIONS), place]
        made = np.broadcast_to(guesses, (CELLS, len(SHARES))).ravel()[place]
        rows.append((f"{name}: chosen on validation", (each(bound, BITS, made, taken) > 0).mean()))
    for name, bound in one_run_bounds(DELTA, ALPHA / tries).items():
        best = each(bound, BITS, guesses, right[:, 1]).reshape(REPETITIONS, -1).max(axis=1)
        rows.append((f"{name}: Bonferroni", (best > 0).mean()))
    for name, bound in one_run_bounds(DELTA, ALPHA).items():
        best = each(bound, BITS, guesses, right[:, 1]).reshape(REPETITIONS, -1).max(axis=1)
        rows.append((f"({name}: the best, unpaid)", (best > 0).mean()))
    return rows, time.perf_counter() - started


def null_trials(g, models=2000):
    """The same of independent trials: false and true positives at 13 nested thresholds."""
    chances = np.diff([0.0, *SHARES[:-1], 1.0])
    size, half = (2, REPETITIONS, CELLS), models // 2
    true, false = (np.cumsum(g.multinomial(half, chances, size), axis=-1) for _ in range(2))
    right = true + half - false

    def trials(bound, **options):
        return lambda sides, alpha: bound(
            sides[0], half, sides[1], half, significance=alpha, **options
        )

    found = {
        "Clopper-Pearson": trials(bounds.clopper_pearson, delta=DELTA),
        "Gaussian DP": trials(bounds.gaussian),
        "accuracy, μ": lambda sides, alpha: bounds.accuracy_mu(sides[2], models, alpha),
    }
    rows = []
    for name, bound in found.items():
        first = bound((true[0], false[0], right[0]), ALPHA)
        place = chosen(first, right[0], np.full_like(right[0], models))
        sides = [
            one[1].reshape(REPETITIONS, -1)[np.arange(REPETITIONS), place]
            for one in (true, false, right)
        ]
        rows.append((f"{name}: chosen on validation", (bound(sides, ALPHA) > 0).mean()))
        paid = bound((true[1], false[1], right[1]), ALPHA / (CELLS * len(SHARES)))
        rows.append((f"{name}: Bonferroni", (paid.reshape(REPETITIONS, -1).max(axis=1) > 0).mean()))
    return rows


def truth_randomised_response(g, epsilon):
    right = g.binomial(MANY, expit(epsilon), REPETITIONS)
    yield (
        "one run, (ε, 0)",
        each(lambda c: one_run.epsilon(c, 0.0, ALPHA), MANY, MANY, right),
        epsilon,
    )
    true, false = g.binomial(MANY // 2, [[expit(epsilon)], [expit(-epsilon)]], (2, REPETITIONS))
    sides = true, MANY // 2, false, MANY // 2
    yield "Clopper-Pearson", bounds.clopper_pearson(*sides, 0.0, ALPHA), epsilon
    yield "accuracy, ε", bounds.accuracy_epsilon(right, MANY, 0.0, ALPHA), epsilon


def truth_gaussian(g, mu):
    """Bounds of μ, and of the ε that it is at δ; the share of guesses is chosen on other draws."""
    epsilon, guesses = curves.epsilon_of_gaussian(mu, DELTA), guesses_of(MANY)
    draws = [right_by_share(g.normal(mu / 2, 1, (100, MANY))) for _ in range(11)]
    validation, right = draws[0], np.concatenate(draws[1:])
    truths = (epsilon, mu)
    for (name, bound), truth in zip(one_run_bounds(DELTA, ALPHA).items(), truths, strict=True):
        middle = np.median(validation, axis=0).astype(int)
        share = int(each(bound, MANY, guesses, middle).argmax())
        told = f"{name}, {guesses[share]:,} guesses"
        yield told, each(bound, MANY, guesses[share], right[:, share]), truth
    true, false = (g.binomial(MANY // 2, ndtr([x]), (REPETITIONS,)) for x in (mu / 2, -mu / 2))
    sides = true, MANY // 2, false, MANY // 2
    yield "Clopper-Pearson", bounds.clopper_pearson(*sides, DELTA, ALPHA), epsilon
    yield "Gaussian DP", bounds.gaussian(*sides, ALPHA), mu
    every = g.binomial(MANY, ndtr(mu / 2), REPETITIONS)
    chance = binom.pmf(np.arange(MANY + 1), MANY, ndtr(mu / 2))
    above = chance[bounds.accuracy_mu(np.arange(MANY + 1), MANY, ALPHA) > mu].sum()
    yield f"accuracy, μ (exactly {above:.1%})", bounds.accuracy_mu(every, MANY, ALPHA), mu


def show_truths(title, found):
    print(title)
    for name, bound, truth in found:
        above, median = (bound > truth).mean(), np.median(bound) / truth
        print(f"  {name:45} above the truth {above:6.1%}   median / truth {median:.3f}")


def installed(name, *more):
    """Folder with packages that pip has put there, without what else they ask for."""
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, *PEERS[name]], check=True)
    sys.path.append(str(folder))
    return folder.joinpath(*more)


def module_of(path):
    """A module by its file alone, without what the rest of its package needs."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def jax_privacy():
    """Bounds of scores with and without the canary, by their names, and of counts."""
    module = module_of(installed("jax-privacy", "jax_privacy", "auditing.py"))
    names = ("clopper_pearson", "one_run", "one_run_fdp", "from_gdp")

    def bound(name, *scores):
        return getattr(module.CanaryScoreAuditor(*scores), f"epsilon_{name}")(ALPHA, delta=DELTA)

    def of_counts(one):
        return module._epsilon_one_run_fdp(0, *one, ALPHA, DELTA)

    return {name: functools.partial(bound, name) for name in names}, of_counts


def tensorflow_privacy():
    """The highest of its bounds at all thresholds, by every method that it has."""
    place = "tensorflow_privacy", "privacy", "privacy_tests", "epsilon_lower_bound.py"
    module = module_of(installed("tensorflow-empirical-privacy", *place))

    def bound(method, *scores):
        every = np.unique(np.concatenate(scores))  # to find them itself asks for an older sklearn
        found = module.EpsilonLowerBound(*scores, ALPHA, thresholds=every)
        with np.errstate(all="ignore"):
            return found.compute_epsilon_lower_bound(method, k=1).max(initial=0.0)

    return {one.value: functools.partial(bound, one) for one in module.BoundMethod}


def opake():
    """Its two bounds of one run, of scores and of counts; the second takes long."""
    installed("opake-auditing")
    one_run_of = importlib.import_module("opake.api.auditing.one_run._estimate").OneRunEstimate
    roc = importlib.import_module("opake.api.auditing.one_run._roc").get_tn_fn_counts

    def estimate(*scores):
        thresholds, tn, fn = roc(*scores)
        sides = {"tp_counts": (fn[-1] - fn)[::-1], "fp_counts": (tn[-1] - tn)[::-1]}
        counts = {"n_in": len(scores[0]), "n_out": len(scores[1]), "tn_counts": tn, "fn_counts": fn}
        named = dict(zip(("in_scores", "out_scores"), scores, strict=True))
        return one_run_of(thresholds=thresholds, **counts, **sides, **named)

    def of_counts(one):
        """All bits are guessed: as many members score 1 as there are right guesses of them."""
        half, wrong = one.bits // 2, one.bits - one.right
        members = np.where(np.arange(half) < wrong // 2, 0.0, 1.0)
        others = np.where(np.arange(half) < wrong - wrong // 2, 1.0, 0.0)
        return estimate(members, others).gdp().epsilon_at(delta=DELTA, significance=ALPHA)

    asked = {"delta": DELTA, "significance": ALPHA}
    return {"eps_delta": lambda *s: estimate(*s).eps_delta().epsilon_at(**asked)}, of_counts


def compare(g, repetitions=200):
    """The same null scores, and the same counts, by peers and here."""
    fdp, gdp = jax_privacy(), opake()
    peers = {"jax-privacy": fdp[0], "tensorflow-empirical-privacy": tensorflow_privacy()}
    coins = g.random((repetitions, 1000)) < 0.5
    scores = g.normal(size=coins.shape)
    samples = [(one[is_in], one[~is_in]) for one, is_in in zip(scores, coins, strict=True)]
    for name, bounds_of in {**peers, "opake-auditing": gdp[0]}.items():
        for method, bound in bounds_of.items():
            started = time.perf_counter()
            found = np.array([bound(*sides) for sides in samples])
            took = (time.perf_counter() - started) / repetitions
            print(f"  {PEERS[name][0]:36} {method:16} ε > 0 in {(found > 0).sum():3} of "
                  f"{repetitions}, median {np.median(found):.2f}, {took:.4f} s each")  # fmt: skip
    made = [Counts(1000, r, int(v)) for r in (100, 300) for v in g.binomial(r, 0.75, 10)]
    beside("f-DP of jax-privacy", fdp[1], made)
    every = [Counts(1000, 1000, int(v)) for v in g.binomial(1000, [0.6, 0.75, 0.9])]
    beside("Gaussian DP of opake-auditing", gdp[1], every)


def beside(title, of_counts, counts):
    """How long a peer's bound of counts takes, and ours, and how far they differ."""
    started = time.perf_counter()
    theirs = np.array([of_counts(one) for one in counts])
    between = time.perf_counter()
    ours = np.array([curves.epsilon_of_gaussian(one_run.mu(one, ALPHA), DELTA) for one in counts])
    took = between - started, time.perf_counter() - between
    print(f"  {title}, the same {len(counts)} counts: {took[0] / took[1]:.0f} times as fast here, "
          f"{took[0] / len(counts):.3g} against {took[1] / len(counts):.3g} s each, "
          f"theirs − ours {(theirs - ours).min():.1e} to {(theirs - ours).max():.1e} "
          f"of {ours.min():.2f} to {ours.max():.2f}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", action="store_true", help="also those, which pip installs")
    asked, g = parser.parse_args(), np.random.default_rng(0)
    rows, seconds = null_one_run(g)
    print(f"Noise: bound above 0, of {REPETITIONS:,} repetitions of {CELLS} cells")
    for name, share in rows + null_trials(g):
        print(f"  {name:50} {share:6.1%}")
    print(f"  bounds of one run of all {CELLS * REPETITIONS:,} cells, three ways: {seconds:.1f} s")
    for epsilon in (1.0, 2.0, 4.0):
        title = f"Randomised response, ε = {epsilon:g}"
        show_truths(title, truth_randomised_response(g, epsilon))
    for mu in (0.5, 1.0, 2.0):
        show_truths(f"Gaussian mechanism, μ = {mu:g}", truth_gaussian(g, mu))
    if asked.peers:
        print("Peers on noise: 1,000 scores, each of a member by a fair coin")
        compare(g)


if __name__ == "__main__":
    main()
