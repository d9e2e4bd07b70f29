"""Perplexity over windows of a text, and how far a model's predictions are from another's.

The windows are llama-perplexity's, so that figures compare: the text's tokens are cut into windows
of the context's length, the first token of each is replaced with BOS where the model wants one, and
what counts is the prediction of the tokens of each window's second half.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from q4run.errors import Error
from q4run.generation.session import Session


@dataclass(frozen=True)
class Mean:
    """A mean over tokens and its standard error, tokens taken as independent."""

    value: float
    stderr: float


@dataclass
class Losses:
    """What was measured for each predicted token, in their order; in nats.

    nll: minus the log probability of the token that comes. With a base model also its own
    ``base_nll``, the ``divergence`` KL(base || model) over the vocabulary, and ``agrees``: whether
    both hold the same token for the likeliest.
    """

    nll: list[np.ndarray] = field(default_factory=list)
    base_nll: list[np.ndarray] = field(default_factory=list)
    divergence: list[np.ndarray] = field(default_factory=list)
    agrees: list[np.ndarray] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        """Of what there is so far."""
        return math.exp(np.concatenate(self.nll).mean())


@dataclass(frozen=True)
class Report:
    """Over all predicted tokens; what needs a base model is None without one.

    ``ratio`` is perplexity over the base's: its error is that of the paired difference, far smaller
    than that of either perplexity. ``kl`` in nats, ``kl_p99`` its 99th percentile.
    """

    tokens: int
    perplexity: Mean
    base_perplexity: Mean | None = None
    ratio: Mean | None = None
    kl: Mean | None = None
    kl_p99: float | None = None
    top1_agreement: Mean | None = None


def measure(
    session: Session,
    windows: np.ndarray,
    base: Session | None = None,
    progress: Callable[[Losses, int], None] | None = None,
) -> Report:
    """Runs the windows, int32 (n_windows, context), one by one, as ``text.windows`` cuts them.

    Each session belongs to a model of its own. ``progress`` is called with the losses and the
    number of windows so far. Raises ``Error`` where windows are so
    short that they predict nothing, and for logits that are no numbers.
    """
    if windows.shape[1] < 4:
        raise Error(
            f"windows of {windows.shape[1]} tokens predict nothing: give --context 4 or more"
        )
    losses = Losses()
    for done, window in enumerate(windows.tolist(), 1):
        first = len(window) // 2
        targets = np.array(window[first + 1 :])
        if base is None:
            _add_losses(losses, session, window, first, targets)
        else:
            _add_comparison(losses, session, base, window, first, targets)
        if progress:
            progress(losses, done)
    return report_of(losses)


def report_of(losses: Losses) -> Report:
    """The figures over what was measured so far."""
    nll = np.concatenate(losses.nll)
    perplexity = _exponential(nll)
    if not losses.base_nll:
        return Report(len(nll), perplexity)
    base_nll = np.concatenate(losses.base_nll)
    divergence = np.concatenate(losses.divergence)
    return Report(
        len(nll),
        perplexity,
        base_perplexity=_exponential(base_nll),
        ratio=_exponential(nll - base_nll),
        kl=_mean(divergence),
        kl_p99=float(np.quantile(divergence, 0.99)),
        top1_agreement=_mean(np.concatenate(losses.agrees)),
    )


def _mean(values: np.ndarray) -> Mean:
    stderr = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Mean(float(values.mean(dtype=np.float64)), float(stderr))


def _exponential(values: np.ndarray) -> Mean:
    """e to the mean, with the error that follows to first order."""
    mean = _mean(values)
    value = math.exp(mean.value)
    return Mean(value, value * mean.stderr)


def _add_losses(
    losses: Losses, session: Session, window: Sequence[int], first: int, targets: np.ndarray
) -> None:
    nll: list[np.ndarray] = []

    def consume(logits: np.ndarray) -> None:
        _check_finite(session, logits)
        done = sum(map(len, nll))
        nll.append(_nll(log_softmax(logits), targets[done:]))

    session.clear()
    session.feed(window[:-1], consume=consume, first=first)
    losses.nll += nll


def _add_comparison(
    losses: Losses,
    session: Session,
    base: Session,
    window: Sequence[int],
    first: int,
    targets: np.ndarray,
) -> None:
    """The base's logits of the window's second half are held meanwhile, beside both budgets."""
    expected = np.empty((len(targets), base.n_vocab), np.float32)
    done = 0

    def keep(logits: np.ndarray) -> None:
        nonlocal done
        _check_finite(base, logits)
        expected[done : done + len(logits)] = logits
        done += len(logits)

    def compare(logits: np.ndarray) -> None:
        nonlocal done
        _check_finite(session, logits)
        rows = slice(done, done + len(logits))
        done += len(logits)
        ours, theirs = log_softmax(logits), log_softmax(expected[rows])
        losses.nll.append(_nll(ours, targets[rows]))
        losses.base_nll.append(_nll(theirs, targets[rows]))
        losses.divergence.append((np.exp(theirs) * (theirs - ours)).sum(axis=1))
        losses.agrees.append(ours.argmax(axis=1) == theirs.argmax(axis=1))

    base.clear()
    base.feed(window[:-1], consume=keep, first=first)
    done = 0
    session.clear()
    session.feed(window[:-1], consume=compare, first=first)


def _check_finite(session: Session, logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        raise session.overflow() or Error(
            "logits are no numbers: the model file is damaged, convert or download it again"
        )


def _nll(log_probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    n_tokens = len(log_probabilities)
    chosen: np.ndarray = log_probabilities[np.arange(n_tokens), targets[:n_tokens]]
    return -chosen


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 (n, n_vocab) -> the logarithms of the probabilities, float64 (n, n_vocab)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
