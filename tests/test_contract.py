"""What every registered merge method promises, ours or not."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import field_formulas as field
import in_memory
import mergekit_formulas as mergekit
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_plugins import Slot
from merge_plugins.api import Example, Prepares, Region, Weight
from merge_plugins.api import slot as slot_module
from merge_plugins.calibration.batches import batches
from merge_plugins.calibration.losses import ExampleLoss
from merge_plugins.engine import Merge, open_merge
from merge_plugins.ops.random import drop_at_random, keep_at_random
from merge_plugins.plugins import Method, registry
from merge_plugins.recipe import Data

REQUIRED = {"weight": 0.5, "t": 0.375}
"""Values for parameters without a default, by name."""
ALWAYS: dict[str, dict[str, Any]] = {
    "adamerging": {"steps": 3, "learning_rate": 0.01},
    "emr": {"tasks": "any"},
    "wudi": {"steps": 30},
}
"""What a method is run with in place of a default that takes too long here, or is not enough."""
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"weight": (1.0, 0.25, 0.5)}, {"normalize": False}],
    "passthrough": [{"scale": 0.5}],
    "task_arithmetic": [{"weight": (1.0, 0.25, 0.5), "lambda": 0.5}, {"normalize": True}],
    "ties": [
        {"density": (0.25, 0.5, 1.0)},
        {"density": 0.4, "normalize": False, "rescale": "l1"},
        {"density": (0.0, 0.5, 0.4), "rescale": "inverse_keep"},
    ],
    "dare_linear": [
        *({"density": (0.25, 0.5, 0.9), "rescale": rescale} for rescale in ("l1", "none")),
        {"density": 0.5, "rescale": "inverse_keep", "normalize": True},
    ],
    "dare_ties": [{"density": (0.25, 0.5, 0.9)}, {"density": 0.5, "rescale": "inverse_keep"}],
    "della": [
        {"density": (0.3, 0.5, 1.0)},
        {"drop_rate": (0.3, 0.5, 0.7), "window_size": 0.14},
    ],
    "della_linear": [
        {"density": 0.5, "epsilon": 0.1, "rescale": "inverse_keep"},
        {"drop_rate": 0.5, "window_size": 0.2, "rescale": "none", "normalize": True},
    ],
    "della_norank": [{"density": 0.6, "window_size": 0.3}, {"drop_rate": 0.4, "rescale": "l1"}],
    "della_layer_norm": [{"density": 0.6, "window_size": 0.3}],
    "ties_noelect": [{"density": 0.4}],
    "ties_row": [{"density": (0.0, 0.4, 1.0)}, {"density": 0.4, "rescale": "l1"}],
    "dare_noelect": [{"density": 0.4}],
    "dare_della": [{"density": 0.4, "rescale": "l1"}],
    "breadcrumbs": [
        {"density": (0.25, 0.5, 0.9), "gamma": 0.05},
        {"density": (0.0, 0.5, 0.9), "gamma": 0.2, "rescale": "inverse_keep"},
        {"density": 0.5, "rescale": "l1"},
    ],
    "breadcrumbs_ties": [{"density": (0.25, 0.5, 0.9), "gamma": 0.05, "normalize": True}],
    "nuslerp": [
        {"weight": (0.25, 0.5, 0.0)},
        *({"nuslerp_flatten": False, "nuslerp_row_wise": rows} for rows in (False, True)),
    ],
    "multislerp": [{"weight": (1.0, 0.25, 0.5)}, {"normalize_weights": False, "eps": 1e-6}],
    "karcher": [{"max_iter": 2, "tol": 1e-9}],
    "sce": [{"select_topk": 0.4}, {"select_topk": 0.0}],
    "ram": [{"epsilon": 0.5}],
    "ramplus_tl": [{"epsilon": 0.5, "r": 0.5, "alpha": 2.0}],
    "nearswap": [{"t": 0.01}],
    "model_stock": [{"filter_wise": True}],
    "slerp_merging": [{"slerp_t": 0.25}, {"dot_threshold": 0.01}],
    "ties_merging": [
        {"param_value_mask_rate": 0.5, "scaling_coefficient": 0.5},
        {"param_value_mask_rate": 0.5, "trim_scope": "model"},
    ],
    "stock_merging": [{"clamp": False}],
    "fisher_merging": [
        {"fisher_scaling_coefficients": (0.5, 1.0, 0.0)},
        {"normalize_fisher_weight": True, "fisher": "mergelm"},
    ],
    "regmean_merging": [{"reduce_non_diagonal_ratio": 0.5}],
    "breadcrumbs_merging": [
        {"param_density": 0.5, "param_value_mask_rate": 0.3, "scaling_coefficient": 0.5},
        {"param_density": 0.0, "param_value_mask_rate": 0.0},
    ],
    "widen_merging": [
        {"above_average_value_ratio": 0.5, "score_calibration_value": 0.75},
        {"above_average_value_ratio": 2.0, "zero_columns": "last"},
    ],
    "twin_merging": [
        {"router": "fixed", "scaling_coefficient": 0.5},
        {"shared_method": "average_merging", "router": "fixed"},
        {"shared_method": "ties_merging", "param_value_mask_rate": 0.5, "router": "fixed"},
        {"shared_method": "ties_merging", "trim_scope": "model", "router": "fixed"},
    ],
    "tsv": [{"lambda": 0.5}],
    "iso_cts": [{"common_space_fraction": 0.5}, {"common_space_fraction": 0.0}],
    "consensus": [{"mask_lambda": (0.2, 0.4, 0.6), "threshold": 1}, {"threshold": 3}],
    "pcb": [{"density": 0.5, "scope": "tensor"}, {"density": 1.0}],
    "emr": [{"router": "fixed"}],
    "adamerging": [{"mode": "task_wise"}],
    "wudi": [{"learning_rate": 1e-3, "lambda": 0.5}],
    "mask_merging": [
        {"weight_mask_rate": 0.5, "use_weight_rescale": True},
        {"weight_mask_rate": (0.25, 0.5, 0.0), "mask_strategy": "magnitude"},
        *(
            {"weight_mask_rate": 0.5, "mask_apply_method": inner}
            for inner in (
                *("task_arithmetic", "slerp_merging", "stock_merging"),
                *("breadcrumbs_merging", "ties_merging", "widen_merging"),
            )
        ),
        {
            "weight_mask_rate": 0.25,
            "mask_apply_method": "ties_merging",
            "trim_scope": "model",
            "mask_strategy": "magnitude",
        },
        {"weight_mask_rate": 0.5, "weight_format": "finetuned_weight"},
    ],
}
"""What each method is run with besides its defaults."""
SCALES = ("lambda", "scaling_coefficient")


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with parameters, as a recipe could set them."""

    method: Method
    parameters: Mapping[str, Any]
    on_base: bool = False
    """Whether there is a base for a method that need not have one."""

    @property
    def has_base(self) -> bool:
        return self.method.needs_base or self.on_base

    @property
    def n_experts(self) -> int:
        most = 2 if self.inner == "slerp_merging" else self.method.max_experts or 3
        return max(self.method.min_experts, min(3, most))

    @property
    def inner(self) -> str:
        """The method that does the merging."""
        if self.method.name == "twin_merging":
            return str(self.parameters.get("shared_method", "task_arithmetic"))
        if self.method.name != "mask_merging":
            return self.method.name
        return str(self.parameters.get("mask_apply_method", "average_merging"))

    @property
    def is_random(self) -> bool:
        if self.method.name == "mask_merging":
            return self.parameters.get("mask_strategy") != "magnitude"
        drops = {"density", "drop_rate"} & self.parameters.keys()
        return self.method.name.startswith(("dare_", "della")) and bool(drops)

    @property
    def factor(self) -> str | None:
        """The parameter that scales what is added to the base, if it is in use."""
        known = self.method.parameters
        unused = self.inner in (
            "average_merging",
            "slerp_merging",
            "stock_merging",
            "widen_merging",
        )
        return None if unused else next((name for name in SCALES if name in known), None)

    @property
    def keeps_one_model(self) -> bool:
        """Whether these settings leave a single model as it is."""
        masks_weights = self.parameters.get("weight_format") == "finetuned_weight"
        sums = self.inner == "linear" and not self.parameters.get("normalize", True)
        sums |= not self.parameters.get("normalize_weights", True) and not self.on_base
        return not (masks_weights or sums or "scale" in self.parameters)

    @property
    def is_symmetric(self) -> bool:
        """Whether all experts are treated alike; random masks are drawn for each."""
        own = any(isinstance(value, tuple) for value in self.parameters.values())
        halfway = self.parameters.get("slerp_t", 0.5) == 0.5
        by_name = self.inner == "cocktail"  # weighs live models, whose order stays
        return halfway and not (own or by_name or self.is_random) and self.n_experts > 1

    def kernel(self, **changes: Any) -> Any:
        """The method's dataclass for `n_experts` experts."""
        values = {}
        for parameter in self.method.parameters.values():
            default = REQUIRED.get(parameter.name) if parameter.required else parameter.default
            value = {**self.parameters, **changes}.get(parameter.name, default)
            if parameter.per_expert:
                each = value if isinstance(value, tuple) else (value,) * 3
                value = each[: self.n_experts]
            values[parameter.field] = value
        return self.method.factory(**values)

    def merge(self, *slots: Slot, **changes: Any) -> list[Tensor]:
        """Merge whole weights in memory, as the runner would."""
        kernel = self.kernel(**changes)
        if isinstance(kernel, Prepares):
            kernel = kernel.prepare(InMemory(slots)) or kernel
        return [in_memory.merged(kernel, slot) for slot in slots]

    def measured(self, slot: Slot) -> Mapping[str, Tensor]:
        """What the method measures of a whole weight."""
        return in_memory.measured(self.kernel(), slot)

    def slot(self, base: Tensor, *experts: Tensor, name: str = "w", seed: int = 0) -> Slot:
        maybe_base, experts = base if self.has_base else None, experts[: self.n_experts]
        asked = self.method.statistics(self.kernel())
        stats = {stat: tuple(statistic(stat, expert) for expert in experts) for stat in asked}
        return Slot(name, maybe_base, experts, stats, seed=seed)


def statistic(name: str, expert: Tensor) -> Tensor | None:
    """Make up a calibration statistic of a weight, which depends on nothing but its values."""
    if registry().statistics[name].elementwise:
        return (1e-3 * expert.float().sin().square() + 1e-6).reshape(expert.shape)
    if expert.ndim != 2:
        return None  # of no linear layer
    seed = int(1000 * expert.double().abs().sum())
    inputs = torch.randn(99, expert.shape[1], generator=torch.Generator().manual_seed(seed))
    return inputs.T @ inputs / 99


class InMemory:
    """What a method that looks at the whole model sees; the live models are not the slots'."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self.seed = slots[0].seed
        self.names = tuple(f"expert {i}" for i, _ in enumerate(slots[0].experts))

    def slots(self) -> Iterator[Weight]:
        return (slot.weight() for slot in self._slots)

    def module(self, expert: int) -> Any:
        return copy.deepcopy(live_model(expert))  # the method's own to change

    def tokenizer(self, expert: int) -> Any:
        return live_tokenizer()

    def examples(self, expert: int) -> tuple[Example, ...]:
        return EXAMPLES

    def stat(self, name: str, expert: int) -> Mapping[str, Tensor]:
        found = {slot.name: slot.stats[name][expert] for slot in self._slots}
        return {key: tensor for key, tensor in found.items() if tensor is not None}

    def batches(self, expert: int) -> Iterator[Mapping[str, Tensor]]:
        return batches(live_tokenizer(), EXAMPLES, Data(path="examples"), classifier=False)


EXAMPLES = (Example("1 2 3", "4 5"), Example("6", "7 8 9 10"), Example("11 12", "13"))


@functools.cache
def live_model(number: int) -> Any:
    """Build one of a family of tiny Llamas: 0, 1, 2, … are fine-tunes of -1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    torch.manual_seed(number + 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * (number + 1) * torch.randn_like(weight))
    return model


@functools.cache
def live_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["?", "end", *map(str, range(14))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="end")


def every_case(that: Callable[[Case], Any] = bool) -> pytest.MarkDecorator:
    """Run a test on every method and its settings in this suite."""
    found = []
    for name in registry().methods:
        for parameters in ({}, *SETTINGS.get(name, [])):
            spelled = ",".join(f"{key}={value}" for key, value in parameters.items())
            for on_base in (False, True) if registry().get(name).takes_base else (False,):
                if that(case := case_of(name, on_base=on_base, **parameters)):
                    label = f"{name}{' on a base' * on_base}[{spelled}]"
                    found.append(pytest.param(case, id=label))
    return pytest.mark.parametrize("case", found)


every_method = pytest.mark.parametrize("name", list(registry().methods))


def case_of(method: str, *, on_base: bool = False, **parameters: Any) -> Case:
    return Case(registry().get(method), {**ALWAYS.get(method, {}), **parameters}, on_base)


def weights(n: int, shape: Sequence[int] = (13, 29), *, seed: int = 0) -> list[Tensor]:
    """Draw numbers whose sums are exact in float32: multiples of 1/256, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(-512, 513, tuple(shape), generator=generator) / 256 for _ in range(n)]


def near(base: Tensor, n: int, *, seed: int = 1) -> list[Tensor]:
    """Draw fine-tunes: small steps from a base."""
    return [base + step / 16 for step in weights(n, base.shape, seed=seed)]


@every_method
def test_required_parameters_have_a_value_in_this_suite(name: str) -> None:
    required = {p.name for p in registry().get(name).parameters.values() if p.required}
    assert required <= REQUIRED.keys()


@every_case(lambda case: case.keeps_one_model)
def test_copies_of_one_model_merge_to_that_model(case: Case) -> None:
    (model,) = weights(1)
    (merged,) = case.merge(case.slot(model, *[model] * 3))
    solved = 1e-12 if case.method.stats else 0.0  # solving for a zero need not give just that
    assert torch.allclose(merged.float(), model, rtol=1e-6, atol=solved)


@every_case(lambda case: case.factor)
def test_a_factor_of_zero_returns_the_base(case: Case) -> None:
    (base,) = weights(1)
    (merged,) = case.merge(case.slot(base, *near(base, 3)), **{str(case.factor): 0.0})
    assert torch.equal(merged.float(), base)


@pytest.mark.parametrize(
    ("trimming", "plain"),
    [
        (case_of("ties", density=1.0), case_of("dare_ties", normalize=True)),
        (case_of("ties_merging", param_value_mask_rate=0.0), case_of("ties", weight=1.0)),
        (case_of("breadcrumbs", density=1.0, gamma=0.5), case_of("task_arithmetic", weight=0.5)),
        (case_of("dare_linear", density=1.0), case_of("task_arithmetic", weight=0.5)),
        (case_of("della_linear", density=1.0), case_of("task_arithmetic", weight=0.5)),
        (case_of("della", drop_rate=0.0, window_size=0.14), case_of("ties")),
        (case_of("nodrop_elect", weight=0.5), case_of("ties")),
        (case_of("ties_row"), case_of("ties")),
        (case_of("ties_noelect"), case_of("nodrop_noelect", weight=0.5)),
        (case_of("dare_ties", density=1.0), case_of("ties", normalize=False)),
        (case_of("mask_merging", weight_mask_rate=0.0), case_of("average_merging")),
        (
            case_of("mask_merging", weight_mask_rate=0.0, mask_strategy="magnitude"),
            case_of("average_merging"),
        ),
        (
            case_of("mask_merging", weight_mask_rate=0.0, mask_apply_method="task_arithmetic"),
            case_of("task_arithmetic"),
        ),
        (
            case_of("mask_merging", weight_mask_rate=0.0, mask_apply_method="ties_merging"),
            case_of("ties_merging"),
        ),
    ],
    ids=lambda case: case.method.name,
)
def test_a_density_of_one_trims_nothing(trimming: Case, plain: Case) -> None:
    base, *_ = weights(1)
    experts = near(base, 3)
    for expert in experts:
        expert.view(-1)[::7] = base.view(-1)[::7] + 1.25  # no cancelling sums: ties differ there
    (merged,) = trimming.merge(trimming.slot(base, *experts))
    (expected,) = plain.merge(plain.slot(base, *experts))
    elected_differently = sum(expert - base for expert in experts) == 0
    same = torch.isclose(merged, expected, rtol=1e-6, atol=1e-7)
    assert bool((same | elected_differently).all())


@every_case(lambda case: case.is_symmetric)
def test_the_order_of_equally_weighted_experts_does_not_matter(case: Case) -> None:
    (base,) = weights(1)
    experts = near(base, case.n_experts)
    (first, *others) = (
        case.merge(case.slot(base, *order))[0] for order in itertools.permutations(experts)
    )
    for other in others:
        assert torch.allclose(first, other, rtol=1e-6, atol=1e-6)


@every_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_are_bit_identical_afterwards(case: Case, dtype: torch.dtype) -> None:
    (base,) = weights(1)
    tensors = [tensor.to(dtype) for tensor in (base, *near(base, 3))]
    before = [tensor.clone() for tensor in tensors]
    (merged,) = case.merge(case.slot(*tensors))
    merged.fill_(7.0)  # the result is a new tensor
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@every_case()
@given(
    shape=st.sampled_from([(), (1,), (0,), (3, 0), (1, 1)])
    | st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
@example(shape=(5, 9, 1), dtype=torch.float16, seed=0)  # rows without a direction
@settings(max_examples=20)
def test_any_shape_merges_to_a_finite_tensor_of_that_shape(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    base, *_ = weights(1, shape, seed=seed)
    slot = case.slot(*(tensor.to(dtype) for tensor in (base, *near(base, 3, seed=seed + 10))))
    (merged,) = case.merge(slot)
    assert merged.shape == shape
    assert torch.isfinite(merged).all()


SHAPES = {"a": (13, 29), "layers.0.b": (7, 5, 11), "c": (101,), "d": (), "e": (0, 3), "f": (1,)}


@pytest.fixture(scope="session")
def family(checkpoint: Callable[..., str]) -> dict[str, str]:
    """A base and three fine-tunes on disk, in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
    folders = {"base": checkpoint({n: w.bfloat16() for n, w in base.items()})}
    for i in range(3):
        moved = {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in base.items()}
        folders[str(i)] = checkpoint({n: w.bfloat16() for n, w in moved.items()})
    return folders


@pytest.fixture(scope="session")
def living(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base and three fine-tunes that can be run, and examples for them."""
    root = tmp_path_factory.mktemp("living")
    for number, name in enumerate(("base", "0", "1", "2"), -1):
        live_model(number).save_pretrained(root / name)
        live_tokenizer().save_pretrained(root / name)
    rows = [json.dumps({"prompt": e.prompt, "response": e.response}) for e in EXAMPLES]
    (root / "data").write_text("\n".join(rows))
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture
def lazily(
    family: Mapping[str, str], living: Mapping[str, str], recipe: Callable[..., Any]
) -> Callable[..., Merge]:
    """Plan a case's merge of a family: of the one that can be run if the method runs it."""

    def make(case: Case, *, block: int = 1 << 17, seed: int = 0) -> Merge:
        names = [str(i) for i in range(case.n_experts)]
        runs = case.method.reads_data(case.kernel())
        models, data = (living, {"data": living["data"]}) if runs else (family, {})
        base = models["base"] if case.has_base else None
        required = {p.name: REQUIRED[p.name] for p in case.method.parameters.values() if p.required}
        given = {**required, **case.parameters}
        spelled = recipe(
            case.method.name,
            base,
            [models[n] for n in names],
            seed=seed,
            **data,
            **{
                name: value if not isinstance(value, tuple) else value[0]
                for name, value in given.items()
            },
        )
        return open_merge(spelled, block=block)

    return make


def read(merge: Merge) -> dict[str, Tensor]:
    return {name: tensor[...] for name, tensor in merge.tensors().items()}


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


@every_case()
def test_the_same_seed_gives_the_same_bits_in_any_order(
    case: Case, lazily: Callable[..., Merge]
) -> None:
    first = read(lazily(case))
    shuffled = list(lazily(case).tensors().items())
    random.Random(0).shuffle(shuffled)
    assert same_bits(first, {name: tensor[...] for name, tensor in shuffled})
    changed = not same_bits(first, read(lazily(case, seed=1)))
    assert changed == case.is_random


@every_case()
def test_a_weight_of_many_blocks_is_measured_as_a_whole(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *_ = weights(1, (50, 60))
    slot = case.slot(base, *near(base, 3))
    (expected,) = case.merge(slot)
    monkeypatch.setattr(slot_module, "block_size", lambda n_inputs: 64)
    (merged,) = case.merge(slot)
    assert torch.allclose(merged, expected, rtol=1e-6, atol=1e-6)


@every_case()
def test_block_size_and_thread_count_never_show(
    case: Case, lazily: Callable[..., Merge], with_threads: Callable[[int], None]
) -> None:
    whole = read(lazily(case))
    for block in (1000, 64, 7):
        assert same_bits(whole, read(lazily(case, block=block))), block
    for n_threads in (1, 5):
        with_threads(n_threads)
        assert same_bits(whole, read(lazily(case, block=50))), n_threads


@every_case()
def test_any_region_has_the_bits_of_the_whole(case: Case, lazily: Callable[..., Merge]) -> None:
    merge = lazily(case, block=50)
    tensors, whole = merge.tensors(), read(merge)

    @settings(max_examples=15)
    @given(name=st.sampled_from(sorted(tensors)), data=st.data())
    def holds(name: str, data: st.DataObject) -> None:
        cuts = [
            slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))))
            for n in tensors[name].shape
        ]
        assert torch.equal(tensors[name][tuple(cuts)], whole[name][tuple(cuts)])

    holds()


@every_case()
def test_what_is_measured_of_a_large_weight_is_the_same_on_any_number_of_threads(
    case: Case, with_threads: Callable[[int], None]
) -> None:
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(300, 1000, generator=generator)  # three blocks
    experts = [base + 0.1 * torch.randn(base.shape, generator=generator) for _ in range(3)]
    slot = case.slot(base.bfloat16(), *(expert.bfloat16() for expert in experts))
    found = []
    for n_threads in (1, 2, 5):
        with_threads(n_threads)
        found.append(case.measured(slot))
    assert all(same_bits(found[0], other) for other in found)


# Oracles: the papers' formulas, and what the recipe language adds to them, in float64.


def average(_: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return x.mean(0)


def linear(_: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return (w * x).sum(0) / w.sum()


def slerp(first: Tensor, second: Tensor, t: float, threshold: float = 0.9995) -> Tensor:
    cosine = (first * second).sum() / (first.norm() * second.norm())
    if abs(cosine) > threshold:
        return (1 - t) * first + t * second
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)


def top(d: Tensor, count: int) -> Tensor:
    """Return 1 for the count largest magnitudes, the first in memory of equal ones."""
    order = d.abs().reshape(-1).sort(descending=True, stable=True).indices
    return torch.zeros(d.numel()).index_fill(0, order[:count], 1.0).view_as(d).double()


def elect(d: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of weighted deltas with the majority's sign, and those who agree's weights."""
    sign = torch.where((w * d).sum(0) >= 0, 1.0, -1.0)
    agree = (d.sign() * w.sign() == sign) & (d != 0)
    return (w * d * agree).sum(0), (w * agree).sum(0)


def restored(kept: Tensor, d: Tensor, rescale: str, density: float) -> Tensor:
    """Return what was kept of each task vector, times the factor that makes up for the rest."""
    factors = {"inverse_keep": 1 / density, "none": 1.0}
    ratios = [a.abs().sum() / k.abs().sum() for a, k in zip(d, kept, strict=True)]
    return torch.stack([k * factors.get(rescale, r) for k, r in zip(kept, ratios, strict=True)])


def ties(
    b: Tensor,
    x: Tensor,
    w: Tensor,
    density: float,
    *,
    normalize: bool = True,
    rescale: str = "none",
) -> Tensor:
    trimmed = torch.stack([d * top(d, int(density * d.numel())) for d in x - b])
    trimmed = restored(trimmed, x - b, rescale, density)
    total, share = elect(trimmed, w)
    return b + (total / torch.where(share == 0, 1.0, share) if normalize else total)


def model_stock(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
    t = share_of_mean(x - b)
    return t * x.mean(0) + (1 - t) * b


def share_of_mean(deltas: Tensor) -> Tensor:
    d, n = deltas.reshape(len(deltas), -1), len(deltas)
    pairs = list(itertools.combinations(range(n), 2))
    cosine = sum(torch.cosine_similarity(d[i], d[j], dim=0) for i, j in pairs) / len(pairs)
    return n * cosine / (1 + (n - 1) * cosine)


def mergellm_stock(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
    t = share_of_mean(x - b).clamp(0, 1)
    return t * x.mean(0) + (1 - t) * b


def breadcrumbs(
    b: Tensor,
    x: Tensor,
    w: Tensor,
    density: float,
    gamma: float,
    *,
    elects: bool = False,
    normalize: bool = False,
) -> Tensor:
    n = b.numel()
    kept = torch.stack(
        [d * (top(d, int(gamma * n) + int(density * n)) - top(d, int(gamma * n))) for d in x - b]
    )
    total, share = elect(kept, w) if elects else ((w * kept).sum(0), w.sum(0))
    return b + (total / torch.where(share == 0, 1.0, share) if normalize else total)


def mergellm_breadcrumbs(
    b: Tensor, x: Tensor, w: Tensor, density: float, rate: float, scale: float
) -> Tensor:
    n = b.numel()
    n_small = int(n * rate)
    n_large = int(n * (1 - density)) - n_small
    kept = []
    for d in x - b:
        ascending = d.abs().reshape(-1).sort().values
        at_least = ascending[max(0, n_small - 1)]
        at_most = ascending[n - 1 - n_large]
        kept.append(d * (d.abs() >= at_least) * (d.abs() <= at_most))
    return b + scale * torch.stack(kept).sum(0)


def widen(b: Tensor, x: Tensor, w: Tensor, ratio: float, value: float) -> Tensor:
    """Return the paper's sec. 3.2 for a linear layer, and MergeLLM's rule for vectors."""
    if b.ndim < 2:
        return b + (calibrated((x - b).abs(), ratio, value) * (x - b)).sum(0)
    lengths = [a.norm(dim=-2, keepdim=True) for a in (b, *x)]
    directions = [a / m for a, m in zip((b, *x), lengths, strict=True)]
    stretched = torch.stack([(m - lengths[0]).abs() for m in lengths[1:]])
    turned = [1 - (d * directions[0]).sum(-2, keepdim=True) for d in directions[1:]]
    scores = sum(
        calibrated(change.argsort(stable=True).argsort() / b.shape[-1], ratio, value)
        for change in (stretched, torch.stack(turned))
    )
    return b + (scores / 2 * (x - b)).sum(0)


def calibrated(values: Tensor, ratio: float, value: float) -> Tensor:
    important = values > ratio * values.double().mean(-1, keepdim=True)
    return torch.where(important, value, values.double().softmax(0))


def mergellm_ties(b: Tensor, x: Tensor, w: Tensor, rate: float, scale: float) -> Tensor:
    trimmed = []
    for d in x - b:
        at = d.abs().reshape(-1).sort().values[max(1, int(d.numel() * rate)) - 1]
        trimmed.append(d * (d.abs() >= at))
    d = torch.stack(trimmed)
    sign = d.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agree = (d.sign() == sign) & (d != 0)
    return b + scale * (d * agree).sum(0) / agree.sum(0).clamp(min=1)


def drawn(b: Tensor, x: Tensor, density: float) -> Tensor:
    """Return the masks our own generator draws: their odds are tested in test_arithmetic."""
    slot = Slot("w", None, tuple(x.float()))
    return torch.stack(
        [drop_at_random(torch.ones(b.shape), slot, i, density) for i in range(len(x))]
    ).double()


def dare(b: Tensor, x: Tensor, w: Tensor, density: float, rescale: str, elects: bool) -> Tensor:
    kept = restored((x - b) * drawn(b, x, density), x - b, rescale, density)
    return b + (elect(kept, w)[0] if elects else (w * kept).sum(0))


def magprune(b: Tensor, x: Tensor, density: float, epsilon: float, by: str) -> Tensor:
    """Return 1 / keep probability where our own generator keeps an entry [MagPrune], else 0."""
    shape = (1, -1) if by == "weight" or b.ndim < 2 else (-1, b.shape[-1])
    slot, found = Slot("w", None, tuple(x.float())), []
    for i, d in enumerate(x - b):
        rows = d.abs().view(shape)
        if by == "size":
            least, most = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
            height = (rows - least) / (most - least)
        else:
            largest_first = rows.sort(descending=True, stable=True).indices
            height = 1 - largest_first.argsort() / (rows.shape[1] - 1)
        if rows.shape[1] == 1:
            height = torch.full_like(rows, 0.5)
        kept = (density - epsilon + 2 * epsilon * height).view(b.shape)
        mask = keep_at_random(torch.ones(b.shape), slot, i, kept.float())
        found.append(mask.double() / kept)
    return torch.stack(found)


def della(
    b: Tensor,
    x: Tensor,
    w: Tensor,
    *,
    rescale: str = "inverse_keep",
    linear: bool = False,
    by: str = "rank",
) -> Tensor:
    """Return DELLA's three steps at density 0.6 and epsilon 0.1: drop, elect, fuse."""
    factors = magprune(b, x, 0.6, 0.1, by)
    kept = (x - b) * (factors if rescale == "inverse_keep" else factors.sign())
    kept = restored(kept, x - b, "l1", 1.0) if rescale == "l1" else kept
    if linear:
        return b + (w * kept).sum(0)
    total, share = elect(kept, w)
    return b + total / torch.where(share == 0, 1.0, share)


def ties_row(b: Tensor, x: Tensor, w: Tensor, density: float) -> Tensor:
    rows = [d if d.ndim > 1 else d[None] for d in x - b]
    kept = [
        torch.cat([r * top(r, int(density * r.numel())) for r in d.flatten(0, -2)]) for d in rows
    ]
    total, share = elect(torch.stack(kept).view(x.shape), w)
    return b + total / torch.where(share == 0, 1.0, share)


def dare_averaged(b: Tensor, x: Tensor, w: Tensor, density: float, *, elects: bool) -> Tensor:
    kept = (x - b) * drawn(b, x, density) / density
    total, share = elect(kept, w) if elects else ((w * kept).sum(0), w.sum(0))
    return b + total / torch.where(share == 0, 1.0, share)


def trimmed_average(b: Tensor, x: Tensor, w: Tensor, density: float) -> Tensor:
    kept = torch.stack([d * top(d, int(density * d.numel())) for d in x - b])
    return b + (w * kept).sum(0) / w.sum()


def smallest_dropped(b: Tensor, x: Tensor, rate: float) -> Tensor:
    kept = []
    for d in x - b:
        ascending, n_dropped = d.abs().reshape(-1).sort().values, int(d.numel() * rate)
        mask = d.abs() > ascending[n_dropped - 1] if n_dropped else 1
        kept.append(b + d * mask)
    return torch.stack(kept)


def cocktail(b: Tensor, x: Tensor, w: Tensor, temperature: float) -> Tensor:
    loss, tokenizer = ExampleLoss(), live_tokenizer()
    losses = [loss(live_model(i), tokenizer, EXAMPLES) for i in range(len(x))]
    odds = [math.exp(-one / temperature) for one in losses]
    return sum(o / sum(odds) * one for o, one in zip(odds, x, strict=True))  # type: ignore[return-value]


def fisher(
    b: Tensor, x: Tensor, w: Tensor, c: Sequence[float], eps: float, *, normalize: bool = False
) -> Tensor:
    found = torch.stack([statistic("fisher", one.float()) for one in x]).double()  # type: ignore[arg-type]
    c = torch.tensor(c, dtype=torch.float64).view(-1, *[1] * b.ndim)
    if normalize:
        c = c / (found.reshape(len(x), -1).norm(dim=1).view_as(c) + eps)
    return (c * (found + eps) * x).sum(0) / (c * (found + eps)).sum(0)


def regmean(b: Tensor, x: Tensor, w: Tensor, ratio: float) -> Tensor:
    if b.ndim != 2:
        return x.mean(0)
    g = torch.stack([statistic("gram", one.float()) for one in x]).double()  # type: ignore[arg-type]
    g = ratio * g + (1 - ratio) * torch.diag_embed(g.diagonal(dim1=1, dim2=2))
    return (torch.linalg.inv(g.sum(0)) @ (g @ x.mT).sum(0)).mT


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "tsv": [
        ({"lambda": s}, lambda b, x, w, s=s: field.by_matrix(b, x, s, field.tsv)) for s in (1, 0.3)
    ],
    "iso_c": [({"lambda": 0.7}, lambda b, x, w: field.by_matrix(b, x, 0.7, field.iso_c))],
    "iso_cts": [
        (
            {"common_space_fraction": fraction},
            lambda b, x, w, f=fraction: field.by_matrix(b, x, 1.0, lambda t: field.iso_cts(t, f)),
        )
        for fraction in (0.8, 0.5, 1.0)
    ],
    "wudi": [
        (
            {"steps": 40, "learning_rate": rate, "lambda": 0.5},
            lambda b, x, w, r=rate: field.by_matrix(b, x, 0.5, lambda t: field.wudi(t, 40, r)),
        )
        for rate in (1e-5, 1e-2)
    ],
    "consensus": [
        (
            {"mask_lambda": (0.2, 0.4, 0.6), "threshold": k, "lambda": 0.5},
            lambda b, x, w, k=k: field.consensus(b, x, (0.2, 0.4, 0.6), k, 0.5),
        )
        for k in (1, 2, 3)
    ],
    "pcb": [
        (
            {"density": density, "scope": scope, "lambda": 0.5},
            lambda b, x, w, d=density: field.pcb(b, x, d, 0.5),
        )
        for density, scope in ((0.2, "model"), (0.6, "tensor"), (1.0, "model"))
    ],
    "emr": [({}, lambda b, x, w: b)],  # what its branches add: test_emr
    "adamerging": [
        ({"initial": 0.4}, lambda b, x, w: b + 0.4 * (x - b).sum(0)),  # as learned: test_adamerging
    ],
    "nuslerp": [
        ({"weight": (0.2, 0.6, 0.0)}, lambda b, x, w: mergekit.slerp(*x, 0.75)),
        (
            {"weight": (0.2, 0.6, 0.0), "on_base": True},
            lambda b, x, w: b + mergekit.slerp(*(x - b), 0.75),
        ),
        ({"weight": (0.5, -0.5, 0.0)}, lambda b, x, w: mergekit.slerp(*x, 0.5)),
        *(
            (
                {"nuslerp_flatten": False, "nuslerp_row_wise": dim == 0, "on_base": True},
                lambda b, x, w, dim=dim: b + mergekit.slerp(*(x - b), 0.5, dim),
            )
            for dim in (0, -1)
        ),
    ],
    "multislerp": [
        ({"weight": (1.0, 0.25, -0.5)}, lambda b, x, w: mergekit.multislerp(x, (1, 0.25, -0.5))),
        (
            {"weight": (1.0, 0.25, 0.5), "normalize_weights": False, "on_base": True},
            lambda b, x, w: b + mergekit.multislerp(x - b, (1, 0.25, 0.5), normalize=False),
        ),
    ],
    "karcher": [({"max_iter": n}, lambda b, x, w, n=n: mergekit.karcher(x, n)) for n in (0, 1, 10)],
    "sce": [
        ({"select_topk": topk}, lambda b, x, w, topk=topk: mergekit.sce(b, x, topk))
        for topk in (1.0, 0.6, 0.1, 0.0)
    ],
    "ram": [({"epsilon": 0.1}, lambda b, x, w: mergekit.ram(b, x, 0.1))],
    "ramplus_tl": [
        (
            {"epsilon": 0.1, "r": r, "alpha": alpha},
            lambda b, x, w, r=r, alpha=alpha: mergekit.ram(b, x, 0.1, r, alpha),
        )
        for r, alpha in ((0.1, 0.2), (0.5, 9.0))
    ],
    "nearswap": [({"t": t}, lambda b, x, w, t=t: mergekit.nearswap(b, x[0], t)) for t in (0, 0.05)],
    "arcee_fusion": [({}, lambda b, x, w: mergekit.arcee_fusion(b, x[0]))],
    "breadcrumbs_ties": [
        (
            {"density": 0.6, "gamma": 0.1, "normalize": normalize},
            lambda b, x, w, n=normalize: breadcrumbs(b, x, w, 0.6, 0.1, elects=True, normalize=n),
        )
        for normalize in (False, True)
    ],
    "linear": [({"weight": (1.0, 0.25, 0.5)}, linear)],
    "cocktail": [
        ({"temperature": t}, lambda b, x, w, t=t: cocktail(b, x, w, t)) for t in (0.5, 5.0)
    ],
    "average_merging": [({}, average)],
    "fisher_merging": [
        ({"minimal_fisher_weight": 1e-4}, lambda b, x, w: fisher(b, x, w, (1, 1, 1), 1e-4)),
        (
            {"fisher_scaling_coefficients": (0.5, 0.0, 0.3), "normalize_fisher_weight": True},
            lambda b, x, w: fisher(b, x, w, (0.5, 0.0, 0.3), 1e-6, normalize=True),
        ),
    ],
    "regmean_merging": [
        ({"reduce_non_diagonal_ratio": ratio}, lambda b, x, w, r=ratio: regmean(b, x, w, r))
        for ratio in (0.0, 0.9, 1.0)
    ],
    "passthrough": [({"scale": 0.3}, lambda b, x, w: 0.3 * x[0])],
    "slerp": [({"t": 0.3}, lambda b, x, w: slerp(b, x[0], 0.3))],
    "slerp_merging": [
        ({"slerp_t": 0.7}, lambda b, x, w: slerp(x[0], x[1], 0.7)),
        ({"dot_threshold": 0.5}, lambda b, x, w: (x[0] + x[1]) / 2),
    ],
    "task_arithmetic": [
        (
            {"weight": (1.0, 0.25, -0.5), "lambda": 0.7},
            lambda b, x, w: b + 0.7 * (w * (x - b)).sum(0),
        )
    ],
    "ties": [
        ({"weight": (1.0, 0.25, 0.5), "density": 0.3}, lambda b, x, w: ties(b, x, w, 0.3)),
        (
            {"density": 0.6, "normalize": False},
            lambda b, x, w: ties(b, x, w, 0.6, normalize=False),
        ),
        (
            {"density": 0.6, "rescale": "l1"},
            lambda b, x, w: ties(b, x, w, 0.6, rescale="l1"),
        ),
    ],
    "dare_linear": [
        (
            {"density": 0.4, "rescale": how},
            lambda b, x, w, how=how: dare(b, x, w, 0.4, how, elects=False),
        )
        for how in ("l1", "inverse_keep", "none")
    ],
    "dare_ties": [
        (
            {"density": 0.4, "rescale": how},
            lambda b, x, w, how=how: dare(b, x, w, 0.4, how, elects=True),
        )
        for how in ("l1", "inverse_keep", "none")
    ],
    "della": [
        ({"drop_rate": 0.4, "window_size": 0.2}, della),
        ({"density": 0.6, "epsilon": 0.1}, functools.partial(della, rescale="l1")),
        (
            {"drop_rate": 0.4, "window_size": 0.2, "rescale": "none"},
            functools.partial(della, rescale="none"),
        ),
    ],
    "della_linear": [
        (
            {"density": 0.6, "epsilon": 0.1, "rescale": how},
            functools.partial(della, rescale=how, linear=True),
        )
        for how in ("l1", "inverse_keep", "none")
    ],
    "della_norank": [
        ({"density": 0.6, "window_size": 0.2}, functools.partial(della, by="size")),
        (
            {"density": 0.6, "window_size": 0.2, "rescale": "l1"},
            functools.partial(della, by="size", rescale="l1"),
        ),
    ],
    "della_layer_norm": [
        ({"drop_rate": 0.4, "epsilon": 0.1}, functools.partial(della, by="weight")),
        (
            {"drop_rate": 0.4, "epsilon": 0.1, "rescale": "l1"},
            functools.partial(della, by="weight", rescale="l1"),
        ),
    ],
    "nodrop_elect": [({"weight": (1.0, 0.25, 0.5)}, lambda b, x, w: ties(b, x, w, 1.0))],
    "nodrop_noelect": [
        ({"weight": (1.0, 0.25, 0.5)}, lambda b, x, w: trimmed_average(b, x, w, 1.0))
    ],
    "ties_noelect": [({"density": 0.3}, lambda b, x, w: trimmed_average(b, x, w, 0.3))],
    "ties_row": [({"density": 0.3}, lambda b, x, w: ties_row(b, x, w, 0.3))],
    "dare_noelect": [({"density": 0.4}, lambda b, x, w: dare_averaged(b, x, w, 0.4, elects=False))],
    "dare_della": [({"density": 0.4}, lambda b, x, w: dare_averaged(b, x, w, 0.4, elects=True))],
    "breadcrumbs": [
        ({"density": 0.6, "gamma": 0.1}, lambda b, x, w: breadcrumbs(b, x, w, 0.6, 0.1))
    ],
    "model_stock": [
        ({}, model_stock),
        (
            {"filter_wise": True},
            lambda b, x, w: torch.stack([model_stock(b[i], x[:, i], w) for i in range(len(b))]),
        ),
    ],
    "stock_merging": [({}, mergellm_stock), ({"clamp": False}, model_stock)],
    "breadcrumbs_merging": [
        (
            {
                "param_density": density,
                "param_value_mask_rate": rate,
                "scaling_coefficient": 0.5,
            },
            lambda b, x, w, density=density, rate=rate: mergellm_breadcrumbs(
                b, x, w, density, rate, 0.5
            ),
        )
        for density, rate in ((0.9, 0.05), (0.4, 0.6), (0.4, 0.0), (0.6, 0.2))
    ],
    "widen_merging": [
        (
            {"above_average_value_ratio": ratio, "score_calibration_value": value},
            lambda b, x, w, ratio=ratio, value=value: widen(b, x, w, ratio, value),
        )
        for ratio, value in (
            (1.001, 1.0),
            (0.499, 0.8),
            (2.001, 1.0),
        )  # of which no rank is a multiple
    ],
    "ties_merging": [
        (
            {"param_value_mask_rate": 0.6, "scaling_coefficient": 0.5, "trim_scope": scope},
            lambda b, x, w: mergellm_ties(b, x, w, 0.6, 0.5),
        )
        for scope in ("tensor", "model")
    ],
    "twin_merging": [
        ({"router": "fixed"}, lambda b, x, w: b + 0.3 * (x - b).sum(0)),
        ({"router": "fixed", "shared_method": "average_merging"}, average),
        ({"router": "fixed", "shared_method": "base_model"}, lambda b, x, w: b),
        (
            {"router": "fixed", "shared_method": "ties_merging", "param_value_mask_rate": 0.6},
            lambda b, x, w: mergellm_ties(b, x, w, 0.6, 0.3),
        ),
    ],
    "mask_merging": [
        (
            {"weight_mask_rate": 0.25, "use_weight_rescale": True},
            lambda b, x, w: (b + (x - b) * drawn(b, x, 0.75) / 0.75).mean(0),
        ),
        (
            {"weight_mask_rate": 0.25, "weight_format": "finetuned_weight"},
            lambda b, x, w: (x * drawn(b, x, 0.75)).mean(0),
        ),
        (
            {
                "weight_mask_rate": 0.25,
                "mask_strategy": "magnitude",
                "mask_apply_method": "ties_merging",
                "param_value_mask_rate": 0.5,
            },
            lambda b, x, w: mergellm_ties(b, smallest_dropped(b, x, 0.25), w, 0.5, 1.0),
        ),
    ],
}


@every_method
def test_every_method_of_ours_has_an_oracle(name: str) -> None:
    if not registry().get(name).plugin.startswith("merge_plugins."):
        pytest.skip("a guest: its plugin tests it")
    assert name in ORACLES


def every_oracle() -> pytest.MarkDecorator:
    found = []
    for name, some in ORACLES.items():
        for parameters, oracle in some:
            for shape in ((257,), (31, 17), (5, 7, 11), (1,)):
                if parameters.get("filter_wise") and len(shape) != 2:
                    continue  # shares of rows: the oracle knows matrices
                restores = parameters.get("rescale") == "l1" or "epsilon" in parameters
                if restores and shape == (1,):
                    continue  # nothing may be left to rescale
                identifier = f"{name}{parameters}{shape}"
                found.append(pytest.param(name, parameters, oracle, shape, id=identifier))
    return pytest.mark.parametrize(("name", "parameters", "oracle", "shape"), found)


@every_oracle()
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_result_is_the_papers_in_float64(
    name: str,
    parameters: dict[str, Any],
    oracle: Callable[..., Tensor],
    shape: tuple[int, ...],
    stored: torch.dtype,
) -> None:
    case = case_of(name, **parameters)
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(shape, generator=generator).to(stored)
    moved = [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(3)]
    experts = [expert.to(stored) for expert in moved[: case.n_experts]]
    given = parameters.get("weight", REQUIRED["weight"])
    w = torch.tensor(given if isinstance(given, tuple) else (given,) * 3, dtype=torch.float64)
    w = w[: case.n_experts].view(-1, *[1] * len(shape))
    slot = case.slot(base.float(), *(expert.float() for expert in experts))
    (merged,) = case.merge(slot)
    expected = oracle(base.double(), torch.stack(experts).double(), w)
    assert merged.dtype == torch.float32
    assert torch.allclose(merged.double(), expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name", ["linear", "average_merging", "slerp", "slerp_merging"])
def test_bfloat16_is_rounded_once_at_the_end(name: str) -> None:
    parameters, oracle = ORACLES[name][0]
    case = case_of(name, **parameters)
    generator = torch.Generator().manual_seed(4)
    base, *experts = (torch.randn(40, 50, generator=generator).bfloat16() for _ in range(4))
    slot = case.slot(base, *experts)
    (merged,) = case.merge(slot)
    w = torch.tensor(parameters.get("weight", (1.0,)), dtype=torch.float64).view(-1, 1, 1)
    exact = oracle(base.double(), torch.stack(slot.experts).double(), w)
    off = (merged.bfloat16().double() - exact).abs()
    ulp = torch.exp2(torch.floor(torch.log2(exact.abs())) - 7)
    assert bool((off <= 0.501 * ulp).all())


def test_a_kernel_may_be_called_on_a_region_of_a_slot() -> None:
    base, *experts = weights(4)
    slot = Slot("w", base, tuple(experts))
    region = Region((13, 29), ((3, 9), (4, 20)))
    weight = slot.weight()
    part = weight.part(region)
    assert torch.equal(part.base, base[3:9, 4:20])
    assert torch.equal(part.index(), torch.arange(13 * 29).view(13, 29)[3:9, 4:20])
    assert part.deltas().shape == (3, 6, 16)
    inner = part.weight().part(Region((13, 29), ((4, 9), (10, 12))))
    assert torch.equal(inner.experts[2], experts[2][4:9, 10:12])
    boxes = part.weight().map_blocks(lambda block: block.base.sum())
    assert torch.stack(boxes).sum() == pytest.approx(float(base[3:9, 4:20].sum()), rel=1e-5)


def test_a_slot_draws_the_same_numbers_for_the_same_expert_and_name() -> None:
    def draws(name: str, expert: int, seed: int) -> list[float]:
        slot = Slot(name, None, (torch.zeros(1),) * 2, seed=seed)
        return torch.rand(4, generator=slot.generator(expert)).tolist()

    assert draws("w", 0, 0) == draws("w", 0, 0)
    different = [draws("w", 0, 0), draws("w", 1, 0), draws("v", 0, 0), draws("w", 0, 1)]
    assert len({tuple(numbers) for numbers in different}) == 4
