"""Time per request of a routed merge, next to rewriting the weights for each request.

    python benchmarks/twin.py

One Llama in float32, four experts, requests with router weights of their own. For scoring the
repository keeps a tenth of the ranks, for generating rank 8, and so does this. One process, every
core (or --threads), a quiet machine; each way on the same requests, medians over --repeat rounds:

* published: the weights of each request as new tensors, run by torch.func.functional_call, one
  request at a time: what Twin-Merging's repository does
* in place: the same, added up in the model's own memory: the best that rewriting can do
* routed: all requests in one batch, low-rank branches in the forward pass

and, apart, what the router's features of the requests cost. The goal: scored by the
routed model at least 8 times faster than published.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from merge_plugins import Recipe, load_merged
from merge_plugins.routing.gates import Centroid

EXPERTS = 4
WAYS = ("published", "in place", "routed", "router")
Run = Callable[[], Any]


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    n_parameters = sum(p.numel() for p in build(args, meta=True).parameters())
    print(
        f"{n_parameters / 1e6:.0f} M parameters, {EXPERTS} experts, batch {args.batch}, prompts of "
        f"{args.prompt} tokens; "
        f"{n_parameters * 4 * (2 * EXPERTS + 3) / 1e9:.1f} GB of memory"
    )
    random = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, args.vocabulary, (args.batch, args.prompt), generator=random)
    weights = torch.rand(args.batch, EXPERTS, generator=random).softmax(-1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="merge-plugins-benchmark-") as folder:
        make(args, Path(folder))
        for what, new, compression in (
            ("score, a tenth of the ranks", 0, {"mask_rate": 0.9}),
            (f"generate {args.new} tokens, rank 8", args.new, {"rank": 8}),
        ):
            routed = load(Path(folder), compression)
            rewriting = Rewriting(args, Path(folder), routed)
            check(routed, rewriting, prompts, weights)
            rows.append((what, times(args, routed, rewriting, prompts, weights, new)))
    print(f"\n| {'ms per request':28} |" + "".join(f" {way:>9} |" for way in WAYS) + " ratio |")
    print("| --- |" + " ---: |" * 5)
    for what, found in rows:
        cells = "".join(f" {1000 * found[way] / args.batch:>9.1f} |" for way in WAYS)
        print(f"| {what:28} |{cells} {found['published'] / found['routed']:5.1f} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {
        **{"width": 512, "layers": 8, "vocabulary": 8000, "batch": 16},
        **{"prompt": 16, "new": 32, "repeat": 3, "threads": torch.get_num_threads()},
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{value}")
    return parser.parse_args()


def build(args: argparse.Namespace, *, meta: bool = False) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=args.width * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 64,
        pad_token_id=0,
    )
    with torch.device("meta" if meta else "cpu"):
        return LlamaForCausalLM(config).eval()


def make(args: argparse.Namespace, folder: Path) -> None:
    """Write a base and its fine-tunes."""
    torch.manual_seed(0)
    base = build(args)
    base.save_pretrained(folder / "base")
    for expert in range(EXPERTS):
        tuned = build(args)
        tuned.load_state_dict(base.state_dict())
        with torch.no_grad():
            for weight in tuned.parameters():
                weight.add_(0.2 * weight.std() * torch.randn_like(weight))
        tuned.save_pretrained(folder / str(expert))


def load(folder: Path, compression: dict[str, float]) -> Any:
    """Return the routed merge of all."""
    recipe = {
        "merge_method": "twin_merging",
        "base_model": str(folder / "base"),
        "models": [str(folder / str(expert)) for expert in range(EXPERTS)],
        "parameters": {"router": "fixed", **compression},
    }
    return load_merged(Recipe.from_mapping(recipe))


class Rewriting:
    """The shared expert, and what each expert adds to it, as whole weights."""

    def __init__(self, args: argparse.Namespace, folder: Path, routed: Any) -> None:
        self.model = build(args)
        self.shared = {name: w.detach().clone() for name, w in routed.named_parameters()}
        self.own: list[dict[str, Tensor]] = []
        for expert in range(EXPERTS):
            tuned = LlamaForCausalLM.from_pretrained(folder / str(expert))
            deltas = {n: w.detach() - self.shared[n] for n, w in tuned.named_parameters()}
            self.own.append({n: compressed(d, routed, n, expert) for n, d in deltas.items()})

    def published(self, row: Tensor) -> dict[str, Tensor]:
        """New weights for one request."""
        return {
            name: shared + sum(w * own[name] for w, own in zip(row, self.own, strict=True))
            for name, shared in self.shared.items()
        }

    def in_place(self, row: Tensor) -> None:
        """Write one request's weights into the model."""
        for name, weight in self.model.named_parameters():
            weight.copy_(self.shared[name])
            for w, own in zip(row.tolist(), self.own, strict=True):
                weight.add_(own[name], alpha=w)


def compressed(delta: Tensor, routed: Any, name: str, expert: int) -> Tensor:
    """The routed model's own factors, multiplied out: both ways serve the same weights."""
    module = routed.get_submodule(name.rpartition(".")[0])
    held = [b for key, b in module.named_buffers(recurse=False) if key.startswith("_weight_")]
    if delta.ndim < 2:
        return delta
    up, down, owner = held
    return up[:, owner == expert] @ down[owner == expert]


def answer(model: Any, ids: Tensor, new: int) -> Tensor:
    if not new:
        return model(ids).logits  # type: ignore[no-any-return]
    found = model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return found[:, ids.shape[1] :]  # type: ignore[no-any-return]


class Functional(torch.nn.Module):
    """A model with other weights, for `generate` as well as for a forward pass."""

    def __init__(self, model: Any, weights: dict[str, Tensor], ids: Tensor, new: int) -> None:
        super().__init__()
        self.model, self.weights = model, {f"model.{n}": w for n, w in weights.items()}
        self.ids, self.new = ids, new

    def forward(self) -> Tensor:
        return answer(self.model, self.ids, self.new)

    def run(self) -> Tensor:
        return functional_call(self, self.weights, ())


def check(routed: Any, rewriting: Rewriting, prompts: Tensor, weights: Tensor) -> None:
    """Stop if the ways do not agree."""
    with torch.no_grad(), routed.routed(weights):
        together = answer(routed, prompts, 0)
        for ids, row, mine in zip(prompts[:2], weights, together, strict=False):
            rewriting.in_place(row)
            assert torch.allclose(answer(rewriting.model, ids[None], 0)[0], mine, atol=1e-4)


@torch.no_grad()
def times(
    args: argparse.Namespace,
    routed: Any,
    rewriting: Rewriting,
    prompts: Tensor,
    weights: Tensor,
    new: int,
) -> dict[str, float]:
    """Seconds for the whole batch, each way."""
    rows = list(zip(prompts.split(1), weights, strict=True))

    def published() -> None:
        for ids, row in rows:
            Functional(rewriting.model, rewriting.published(row), ids, new).run()

    def in_place() -> None:
        for ids, row in rows:
            rewriting.in_place(row)
            answer(rewriting.model, ids, new)

    def all_at_once() -> None:
        with routed.routed(weights):
            answer(routed, prompts, new)

    router = Centroid(EXPERTS).learn(
        lambda expert: routed.routing.features(prompts[expert::EXPERTS].tolist()), 0
    )

    class Requests:
        features = property(lambda _: routed.routing.features(prompts.tolist()))

    runs: dict[str, Run] = {
        "published": published,
        "in place": in_place,
        "routed": all_at_once,
        "router": lambda: router(Requests()),  # type: ignore[arg-type]
    }
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(args.repeat):
        for way, run in runs.items():
            start = time.perf_counter()
            run()
            found[way].append(time.perf_counter() - start)
    return {way: statistics.median(seconds) for way, seconds in found.items()}


if __name__ == "__main__":
    main()
