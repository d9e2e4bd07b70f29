"""Trains the tiny Llama 4 chat model: python -m q4run.bench.tiny_llama4.train --data DIR --out DIR

The data folder holds `sgd_dialogues.txt` and `fables/*.txt`. Processes of one thread each share the
parameters: each computes the gradients of its batches, then updates its part of the parameters.
When it was killed, the same command goes on from the last checkpoint, bit for bit as if it had not
been. In the output folder: `tokenizer.json`, `checkpoint.pt`, `log.jsonl` (the loss curve), `pids`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from q4run.bench.tiny_llama4.checkpoint import (
    CHECKPOINT,
    LOG,
    PIDS,
    TOKENIZER,
    TrainingState,
    load_checkpoint,
    save_checkpoint,
)
from q4run.bench.tiny_llama4.corpus import Split, read_corpus
from q4run.bench.tiny_llama4.documents import Batch, TrainingStream, held_out_documents
from q4run.bench.tiny_llama4.evaluate import mean_loss
from q4run.bench.tiny_llama4.model import ModelConfig, forward
from q4run.bench.tiny_llama4.ops import Weight, head_loss
from q4run.bench.tiny_llama4.optimizer import OptimizerConfig, update, uses_muon
from q4run.bench.tiny_llama4.tokenizer import ChatEncoder, train_tokenizer


@dataclass(frozen=True)
class TrainingConfig:
    """One step takes `step_batches` batches of about `batch_tokens` tokens."""

    n_steps: int = 1200
    step_batches: int = 8
    batch_tokens: int = 2048
    n_warmup: int = 40
    balance: float = 0.01
    seed: int = 1
    n_processes: int = 2
    checkpoint_steps: int = 50
    eval_steps: int = 100
    eval_documents: int = 16


class Run:
    """A training run: what its processes share, and the loop that each goes through."""

    def __init__(
        self,
        config: TrainingConfig,
        optimizer: OptimizerConfig,
        state: TrainingState,
        stream: TrainingStream,
        held_out: dict[str, list[list[int]]],
        out: Path,
    ) -> None:
        self.config, self.optimizer, self.state, self.out = config, optimizer, state, out
        self._stream, self._held_out = stream, held_out
        state.share()
        n = config.n_processes
        self._grads = torch.zeros(n, len(state.first)).share_memory_()
        self._losses = torch.zeros(n, 2).share_memory_()
        self._barrier = multiprocessing.get_context("fork").Barrier(n)
        self._parts = _parts(state.parameters.config, n)

    def train(self, rank: int) -> None:
        """The steps that are left, as process `rank` of `n_processes`."""
        torch.set_num_threads(1)
        _keep_freed_memory()
        weights = self.state.parameters.weights(self._grads[rank])
        parent = os.getppid()
        first = self.state.step
        for step, numbered in enumerate(self._steps(first), first + 1):
            epochs, batches = zip(*numbered, strict=True)
            if os.getppid() != parent:
                sys.exit("the process that started this one is gone")
            started = time.monotonic()
            n_tokens = sum(batch.n_tokens for batch in batches)
            self._losses[rank] = 0
            for batch in batches[rank :: self.config.n_processes]:
                self._losses[rank] += self._add_gradients(weights, batch, n_tokens)
            self._barrier.wait()
            losses = self._losses.sum(0).tolist()
            self._update(rank, step)
            self._barrier.wait()
            if rank == 0:
                self.state.step = step
                self._report(weights, losses, n_tokens, epochs[0], started)

    def _steps(self, done: int) -> Iterator[list[tuple[int, Batch]]]:
        """For each step that is left, its batches and the epochs they are of."""
        batches = self._stream.batches(self.config.batch_tokens)
        n = self.config.step_batches
        left = islice(batches, done * n, self.config.n_steps * n)
        while step := list(islice(left, n)):
            yield step

    def _add_gradients(self, weights: dict[str, Weight], batch: Batch, n_tokens: int) -> Any:
        """Adds a batch's part of a step of `n_tokens`; returns its (loss, imbalance)."""
        ids, targets = (torch.from_numpy(array) for array in batch.inputs_and_targets())
        done = forward(self.state.parameters.config, weights, ids, list(batch.lengths))
        loss = head_loss(done.hidden, weights["embedding"], targets, 1 / n_tokens)
        imbalance = done.imbalance * (batch.n_tokens / n_tokens)
        (loss + self.config.balance * imbalance).backward()
        return torch.stack([loss.detach(), imbalance.detach()])

    def _update(self, rank: int, step: int) -> None:
        state, names = self.state, self._parts[rank]
        views = state.parameters.views
        trained = views(state.parameters.trained)
        first, second = views(state.first), views(state.second)
        grads = [views(grad) for grad in self._grads]
        schedule = rate_factor(self.config, step)
        for name in names:
            grad = grads[0][name]
            for one in grads[1:]:
                grad.add_(one[name])
            moments = (first[name], second[name])
            update(self.optimizer, name, trained[name], grad, moments, step, schedule)
            for one in grads:
                one[name].zero_()
        state.parameters.refresh(names)

    def _report(
        self,
        weights: dict[str, Weight],
        losses: list[float],
        n_tokens: int,
        epoch: int,
        started: float,
    ) -> None:
        """Log, evaluation and checkpoint, while the others are at the next step's gradients."""
        step, config = self.state.step, self.config
        loss, imbalance = (round(value, 4) for value in losses)
        seconds = time.monotonic() - started
        line: dict[str, float] = {"step": step, "epoch": epoch, "tokens": n_tokens}
        line |= {"loss": loss, "imbalance": imbalance}
        line |= {"rate": rate_factor(config, step), "tokens_per_s": round(n_tokens / seconds)}
        is_last = step == config.n_steps
        if step % config.eval_steps == 0 or is_last:
            for kind, documents in self._held_out.items():
                some = documents[: config.eval_documents]
                loss = mean_loss(self.state.parameters.config, weights, some)
                line[f"perplexity_{kind}"] = round(math.exp(loss), 3)
        with (self.out / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        if step % config.checkpoint_steps == 0 or is_last:
            save_checkpoint(self.state, self.settings(), self.out / CHECKPOINT)

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        settings: dict[str, Any] = json.loads(
            json.dumps(asdict(self.config) | asdict(self.optimizer))
        )
        return settings


def rate_factor(config: TrainingConfig, step: int) -> float:
    """Part of the peak learning rate at a step, from 1: a linear rise, then a linear fall to 0."""
    rise = step / config.n_warmup
    fall = (config.n_steps - step + 1) / max(config.n_steps - config.n_warmup, 1)
    return round(min(rise, fall, 1.0), 6)


def _parts(config: ModelConfig, n: int) -> list[list[str]]:
    """The parameters shared out so that updates take each process about as long."""
    costs = {}
    for name, shape in config.shapes().items():
        n_values = torch.Size(shape).numel()
        # Products of small matrices per value, against some passes over memory.
        costs[name] = n_values * (shape[-1] if uses_muon(name) else 16)
    parts: list[list[str]] = [[] for _ in range(n)]
    loads = [0] * n
    for name in sorted(costs, key=lambda name: -costs[name]):
        least = loads.index(min(loads))
        parts[least].append(name)
        loads[least] += costs[name]
    return parts


def _keep_freed_memory() -> None:
    """Tells glibc not to give large blocks back to the system after each use."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 2**30)


def run_processes(run: Run) -> None:
    """Trains in `n_processes`; when one fails, ends the others and raises `SystemExit`."""
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=run.train, args=(rank,), daemon=True)
        for rank in range(run.config.n_processes)
    ]
    for worker in workers:
        worker.start()
    pids = [os.getpid(), *(worker.pid for worker in workers)]
    (run.out / PIDS).write_text("\n".join(map(str, pids)) + "\n")
    running = list(workers)
    while running:
        ended = wait([worker.sentinel for worker in running])
        for worker in [worker for worker in running if worker.sentinel in ended]:
            running.remove(worker)
            worker.join()
            if worker.exitcode:
                for other in running:
                    other.terminate()
                sys.exit(f"a training process ended with {worker.exitcode}")
    (run.out / PIDS).unlink()


def tokenizer_for(trained_on: Split, path: Path) -> ChatEncoder:
    """The tokenizer at `path`, made first if it is not there."""
    if not path.exists():
        texts = [content for dialogue in trained_on.dialogues for _, content in dialogue]
        texts += [f"{story.title}\n\n{story.text}" for story in trained_on.stories]
        train_tokenizer(texts).save(str(path))
    return ChatEncoder(Tokenizer.from_file(str(path)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    for name, value in asdict(TrainingConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--model", default="{}", help="changes to the model's sizes, as JSON")
    parser.add_argument("--optimizer", default="{}", help="changes to the optimizer, as JSON")
    arguments = vars(parser.parse_args())
    data, out = arguments.pop("data"), arguments.pop("out")
    model = ModelConfig(**json.loads(arguments.pop("model")))
    optimizer = OptimizerConfig(**json.loads(arguments.pop("optimizer")))
    config = TrainingConfig(**arguments)

    out.mkdir(parents=True, exist_ok=True)
    trained_on, held = read_corpus(data)
    encoder = tokenizer_for(trained_on, out / TOKENIZER)
    settings: dict[str, Any] | None = None
    if (out / CHECKPOINT).exists():
        state, settings = load_checkpoint(out / CHECKPOINT, torch.bfloat16)
    else:
        state = TrainingState.new(model, torch.bfloat16, config.seed)
    stream = TrainingStream(encoder, trained_on, config.seed)
    run = Run(config, optimizer, state, stream, held_out_documents(encoder, held), out)
    if settings is not None and (settings, state.parameters.config) != (run.settings(), model):
        sys.exit(f"{out / CHECKPOINT} was made with other settings")
    run_processes(run)


if __name__ == "__main__":
    main()
