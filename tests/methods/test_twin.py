"""Twin-Merging: a routed model equals the published one, which rewrites its weights per request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import seeded, write_family
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from merge_plugins import Recipe, Slot, load_merged, merged_tensors, save
from merge_plugins.api import LowRank
from merge_plugins.errors import MergeError, MismatchError, ParameterError, RecipeError
from merge_plugins.methods.twin import TwinMerging

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "Llama": (AutoModelForCausalLM, GROUPED),
    "Qwen3": (AutoModelForCausalLM, {**GROUPED, "tie_word_embeddings": True}),
    "Gemma3Text": (AutoModelForCausalLM, {**GROUPED, "sliding_window": 8}),
    "GPT2": (
        AutoModelForCausalLM,
        {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "Roberta": (AutoModelForSequenceClassification, {**SIZES, "pad_token_id": 0}),
    "Bert": (AutoModelForSequenceClassification, {**SIZES, "pad_token_id": 0}),
}
IDS = torch.tensor(
    [[1, 5, 9, 2, 40, 17], [7, 3, 3, 8, 0, 0], [9, 9, 9, 9, 9, 9], [4, 4, 5, 0, 0, 0]]
)
MASK = (IDS != 0).long()
WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.9, 0.05, 0.05], [0.1, 0.1, 0.8]])
EXPERTS = ("a", "b", "c")

Family = Callable[[str], dict[str, str]]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Save a tiny model and three fine-tunes of it, all weights changed, once per kind."""
    made: dict[str, dict[str, str]] = {}

    def make(name: str) -> dict[str, str]:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            auto_class, sizes = MODELS[name]
            config = getattr(transformers, f"{name}Config")(**sizes)
            model = seeded(config, auto_class, dtype=torch.float32)
            made[name] = write_family(model, root, ("base", *EXPERTS), spread=0.05)
        return made[name]

    return make


def spelled(models: Mapping[str, str], **given: Any) -> Recipe:
    top = {key: given.pop(key) for key in ("data", "seed") if key in given}
    return Recipe.from_mapping(
        {
            "merge_method": "twin_merging",
            "base_model": models["base"],
            "models": [{"model": models[name]} for name in EXPERTS],
            "parameters": {"router": "fixed", "mask_rate": 0.75, **given},
            **top,
        }
    )


def compressed(delta: Tensor, density: float) -> Tensor:
    """The published compression, in float64: whole factors, then the leading part of them."""
    if delta.ndim < 2:
        return delta
    u, s, vt = torch.linalg.svd(delta.double(), full_matrices=True)
    rank = int(density * len(s))
    return (u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]).float()


class Rewriting:
    """The published serving: the model's weights are written anew for every request."""

    def __init__(
        self, models: Mapping[str, str], auto_class: Any, scale: float, density: float
    ) -> None:
        base, *experts = (
            {name: weight.detach() for name, weight in model.named_parameters()}
            for model in (auto_class.from_pretrained(models[n]) for n in ("base", *EXPERTS))
        )
        self.model = auto_class.from_pretrained(models["base"])
        self.shared = {n: w + scale * sum(e[n] - w for e in experts) for n, w in base.items()}
        self.own = [
            {n: compressed(expert[n] - w, density) for n, w in self.shared.items()}
            for expert in experts
        ]

    def weights(self, row: Tensor) -> dict[str, Tensor]:
        return {
            name: shared + sum(w * own[name] for w, own in zip(row, self.own, strict=True))
            for name, shared in self.shared.items()
        }

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor, row: Tensor) -> Tensor:
        call = {"input_ids": ids[None], "attention_mask": mask[None]}
        found = torch.func.functional_call(
            self.model, self.weights(row), (), call, tie_weights=True
        )
        return found.logits[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_a_routed_batch_equals_rewriting_the_weights_for_each_request(
    name: str, family: Family
) -> None:
    auto_class, _ = MODELS[name]
    model: Any = load_merged(spelled(family(name)), auto_class)
    rewriting = Rewriting(family(name), auto_class, 0.3, 0.25)
    with torch.no_grad(), model.routed(WEIGHTS):
        together = model(input_ids=IDS, attention_mask=MASK).logits
    for i, row in enumerate(WEIGHTS):
        expected = rewriting.logits(IDS[i], MASK[i], row)
        real = MASK[i].bool() if expected.ndim == 2 else ...
        assert torch.allclose(together[i][real], expected[real], rtol=0, atol=1e-5)
    shared = torch.func.functional_call(
        rewriting.model, rewriting.shared, (), {"input_ids": IDS, "attention_mask": MASK}
    ).logits
    assert not torch.allclose(together, shared, atol=1e-2)  # the experts matter


@pytest.mark.parametrize("strategy", ["magnitude", "bernoulli"])
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_sparse_knowledge_is_applied_like_any_other(
    name: str, strategy: str, family: Family
) -> None:
    recipe = spelled(family(name), mask_strategy=strategy)
    model: Any = load_merged(recipe)
    plain: Any = load_merged(spelled(family(name), mask_rate=1.0))
    weights = dict(plain.named_parameters())
    kernel = TwinMerging(router_weight=(1.0,) * 3, mask_rate=0.75, mask_strategy=strategy)  # type: ignore[arg-type]
    experts = [load_file(Path(family(name)[e]) / "model.safetensors") for e in EXPERTS]
    for key, weight in weights.items():
        slot = Slot(key, None, tuple(expert[key] for expert in experts))
        own = kernel.branches(slot, weight.detach())
        weights[key] = weight.detach() + sum(w * v for w, v in zip(WEIGHTS[0], own, strict=True))
    expected = torch.func.functional_call(plain, weights, (IDS[:1],)).logits
    with torch.no_grad(), model.routed(WEIGHTS[0]):
        assert torch.allclose(model(IDS[:1]).logits, expected, rtol=0, atol=1e-5)


def test_the_tensors_are_those_of_the_repository(shared_fixtures: Path) -> None:
    root = shared_fixtures / "seeds"
    cases = json.loads((root / "cases.json").read_text())
    (case,) = (case for case in cases if case["method"] == "twin")
    base, *experts = (load_file(root / file) for file in (case["base"], *case["experts"]))
    kernel = TwinMerging(
        router="fixed",
        router_weight=tuple(torch.tensor(case["router_logits"]).softmax(0).tolist()),
        scaling_coefficient=case["shared_scale"],
    )
    router = kernel.gate.learn(lambda _: torch.empty(0), 0)
    weights = router([None])[0]  # type: ignore[arg-type]
    for name, expected in load_file(root / case["output"]).items():
        slot = Slot(name, base[name], tuple(expert[name] for expert in experts))
        shared = kernel(slot)
        branches = kernel.branches(slot, shared)
        dense = [b.dense() if isinstance(b, LowRank) else b for b in branches]
        merged = shared + sum(w * v for w, v in zip(weights, dense, strict=True))
        assert torch.allclose(merged, expected, rtol=0, atol=2e-6), name


@pytest.fixture(scope="session")
def llama(family: Family) -> Any:
    return load_merged(spelled(family("Llama")))


def greedy(model: Any, ids: Tensor, n: int, **options: Any) -> Tensor:
    found = model.generate(
        ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0, **options
    )
    return found[:, ids.shape[1] :]  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_generation_keeps_the_weights_of_each_prompt(
    options: dict[str, Any], llama: Any, family: Family
) -> None:
    rewriting = Rewriting(family("Llama"), AutoModelForCausalLM, 0.3, 0.25)
    ids, mask = IDS.flip(1), MASK.flip(1)  # padded on the left
    with llama.routed(WEIGHTS):
        together = greedy(llama, ids, 8, attention_mask=mask, **options)
    for i, row in enumerate(WEIGHTS):
        alone: PreTrainedModel = AutoModelForCausalLM.from_pretrained(family("Llama")["base"])
        alone.load_state_dict(rewriting.weights(row))
        prompt = ids[i][mask[i].bool()][None]
        assert torch.equal(greedy(alone, prompt, 8, **options)[0], together[i])


def test_threads_keep_the_weights_of_their_own_prompts(llama: Any) -> None:
    together = threading.Barrier(len(WEIGHTS))

    def answer(row: int, wait: bool = False) -> Tensor:
        ids = IDS[row][MASK[row].bool()][None]
        with llama.routed(WEIGHTS[row]):
            if wait:
                together.wait()  # every thread holds its weights before any generates
            return greedy(llama, ids, 8)

    alone = [answer(row) for row in range(len(WEIGHTS))]
    with ThreadPoolExecutor(len(WEIGHTS)) as pool:
        found = [*pool.map(lambda row: answer(row, wait=True), range(len(WEIGHTS)))]
    assert all(map(torch.equal, alone, found))


PROMPTS = [row[keep.bool()].tolist() for row, keep in zip(IDS, MASK, strict=True)]


def packing(**given: Any) -> dict[str, Any]:
    """Options of continuous batching that make prompts wait for each other and be split."""
    sizes = {"page_size": 4, "num_blocks": 32, "max_batch_tokens": 7, **given}
    return {
        "generation_config": GenerationConfig(
            max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        "continuous_batching_config": ContinuousBatchingConfig(**sizes),
    }


def one_by_one(model: Any, weights: Sequence[Tensor | None]) -> list[list[int]]:
    """Generate for each of the prompts alone, with weights that are given or its own."""
    found = []
    for held, prompt in zip(weights, PROMPTS, strict=True):
        with nullcontext() if held is None else model.routed(held):
            ids = model.generate(
                torch.tensor([prompt]), generation_config=packing()["generation_config"]
            )
        found.append(ids[0, len(prompt) :].tolist())
    return found


def packed(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Generate in continuous batches."""
    return [found.generated_tokens for found in model.generate_batch(prompts, **packing()).values()]


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPT2"])
def test_continuous_batches_keep_the_weights_of_each_prompt(name: str, family: Family) -> None:
    model: Any = load_merged(spelled(family(name)))
    alone = one_by_one(model, [*WEIGHTS])
    with model.routed(WEIGHTS):
        assert packed(model, PROMPTS) == alone
    with model.routed(WEIGHTS[1]):
        assert packed(model, PROMPTS)[1] == alone[1]
        assert packed(model, PROMPTS) != alone, "weights do not matter"


def test_continuous_batches_are_routed_by_their_prompts(learned: Any) -> None:
    alone = one_by_one(learned, [None] * 4)
    again = packed(learned, [*PROMPTS, *PROMPTS])  # of equal prompts, which share no page
    assert again == [*alone, *alone]


def test_requests_join_a_manager_with_weights_of_their_own(llama: Any) -> None:
    with llama.routed(WEIGHTS):
        alone = packed(llama, PROMPTS)
    with llama.continuous_batching_context_manager(**packing()) as manager:
        names = []
        for weights, prompt in zip(WEIGHTS, PROMPTS, strict=True):
            with llama.routed(weights):
                names.append(manager.add_request(prompt))
        found = {}
        while len(found) < len(names):
            result = manager.get_result(timeout=30)
            found[result.request_id] = result.generated_tokens
    assert [found[name] for name in names] == alone


def test_held_weights_must_fit_the_prompts_of_continuous_batches(llama: Any) -> None:
    with llama.routed(WEIGHTS), pytest.raises(MergeError, match=r"of 4 requests .* there are 3"):
        packed(llama, PROMPTS[:3])


def test_decoding_step_by_step_keeps_the_weights_of_the_prompt(learned: Any) -> None:
    whole = learned.generate(IDS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    with torch.no_grad():
        first = learned(IDS[:1], use_cache=True)
        token = first.logits[:, -1:].argmax(-1)
        second = learned(token, past_key_values=first.past_key_values, use_cache=True)
        third = learned(
            second.logits[:, -1:].argmax(-1), past_key_values=second.past_key_values
        ).logits[:, -1:]
    assert whole[0, 6:8].tolist() == [int(token), int(second.logits[0, -1].argmax())]
    assert int(whole[0, 8]) == int(third.argmax())


def test_a_cache_of_another_model_has_no_weights(learned: Any, llama: Any) -> None:
    with torch.no_grad(), llama.routed(WEIGHTS[0]):
        cache = llama(IDS[:1], use_cache=True).past_key_values
    with pytest.raises(MergeError, match="pass the whole prompt first"):
        learned(IDS[:1, :1], past_key_values=cache)


def test_excluded_weights_stay_the_bases(family: Family) -> None:
    models = family("Llama")
    recipe = {**spelled(models, mask_rate=0.0).as_dict(), "exclude": ["embed_tokens", "norm"]}
    model: Any = load_merged(Recipe.from_mapping(recipe))
    base = AutoModelForCausalLM.from_pretrained(models["base"])
    assert torch.equal(model.model.embed_tokens.weight, base.model.embed_tokens.weight)
    assert not model.model.embed_tokens._forward_hooks
    assert model.model.layers[0].mlp.up_proj._forward_hooks


WORDS = ("red blue green", "one two three", "cat dog cow")
"""What each expert's examples are about."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Texts of three kinds, a file for each."""
    folder, files = tmp_path_factory.mktemp("data"), []
    for number, words in enumerate(WORDS):
        random = torch.Generator().manual_seed(number)
        some = words.split()
        rows = [
            {"text": " ".join(some[int(i)] for i in torch.randint(3, (6,), generator=random))}
            for _ in range(24)
        ]
        file = folder / f"{number}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        files.append(str(file))
    return files


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = ["<pad>", "<unk>", *" ".join(WORDS).split()]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )


def with_data(models: Mapping[str, str], data: Sequence[str], **given: Any) -> Recipe:
    tokenizer().save_pretrained(models["base"])
    recipe = spelled(models, **given).as_dict()
    for entry, file in zip(recipe["models"], data, strict=True):
        entry["data"] = file
    return Recipe.from_mapping(recipe)


@pytest.fixture(scope="session")
def learned(family: Family, data: list[str]) -> Any:
    return load_merged(with_data(family("Llama"), data, router="centroid"))


@pytest.mark.parametrize("router", ["centroid", "mlp"])
def test_a_prompt_is_routed_to_the_expert_of_its_kind(
    router: str, family: Family, data: list[str]
) -> None:
    state = torch.get_rng_state()
    model: Any = load_merged(with_data(family("Llama"), data, router=router))
    again: Any = load_merged(with_data(family("Llama"), data, router=router))
    assert torch.equal(torch.get_rng_state(), state)
    texts = [" ".join(words.split()[:2]) for words in WORDS]
    prompts = [tokenizer()(text)["input_ids"] for text in texts]
    weights = model.routing.weigh(prompts)
    assert weights.argmax(1).tolist() == [0, 1, 2]
    assert torch.allclose(weights.sum(1), torch.ones(3))
    assert torch.equal(weights, again.routing.weigh(prompts))


def test_the_prompt_alone_decides_and_padding_does_not(learned: Any) -> None:
    prompts = [row[keep.bool()].tolist() for row, keep in zip(IDS, MASK, strict=True)]
    together = learned.routing.weigher.features(prompts)
    for prompt, row in zip(prompts, together, strict=True):
        with torch.no_grad():
            learned.routing.current.only_shared = True
            states = learned.model(torch.tensor([prompt])).last_hidden_state
            learned.routing.current.only_shared = False
        assert torch.allclose(row, states[0].mean(0), atol=1e-5)
    weights = learned.routing.weigh(prompts)
    with torch.no_grad():
        alone = learned(IDS, attention_mask=MASK).logits
        with learned.routed(weights):
            held = learned(IDS, attention_mask=MASK).logits
    assert torch.equal(alone, held)


def test_features_are_computed_once_for_each_prompt(
    learned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned.routing.weigh([[2, 3, 4], [5, 6]])
    seen: list[Any] = []
    weigher = learned.routing.weigher
    features = weigher.features
    monkeypatch.setattr(weigher, "features", lambda p: seen.extend(p) or features(p))
    learned.generate(torch.tensor([[2, 3, 4]]), max_new_tokens=5, do_sample=False)
    learned.routing.weigh([[5, 6], [7, 8], [7, 8]])
    assert seen == [{"input_ids": [7, 8]}]


def test_a_part_of_the_model_called_alone_says_how_to_call_it(llama: Any) -> None:
    with pytest.raises(MergeError, match=r"model\.routed\(weights\)"):
        llama.model.embed_tokens(IDS)


def test_held_weights_must_fit_experts_and_batch(llama: Any) -> None:
    with pytest.raises(MergeError, match=r"takes \[3\] weights"), llama.routed([0.5, 0.5]):
        pass
    with pytest.raises(MergeError, match="of 3 requests"), llama.routed(WEIGHTS[:3]):
        llama(IDS)


def test_a_task_names_its_expert(family: Family) -> None:
    recipe = spelled(family("Llama"), router="oracle").as_dict()
    for entry, tasks in zip(recipe["models"], ("gsm8k", "mmlu_*|arc", "xnli"), strict=True):
        entry["parameters"] = {"tasks": tasks}
    model: Any = load_merged(Recipe.from_mapping(recipe))
    assert model.routing.weigh([[]], "mmlu_law").tolist() == [[0, 1, 0]]
    with pytest.raises(RecipeError, match=r"task 'piqa' belongs to no expert.*gsm8k"):
        model.routing.weigh([[]], "piqa")
    with pytest.raises(MergeError, match="task of each request"):
        model(IDS)


def test_without_knowledge_of_its_own_the_model_is_the_shared_expert(family: Family) -> None:
    models = family("Llama")
    model: Any = load_merged(spelled(models, mask_rate=1.0))
    static = load_merged(
        Recipe.from_mapping(
            {
                "merge_method": "task_arithmetic",
                "base_model": models["base"],
                "models": [models[name] for name in EXPERTS],
                "parameters": {"lambda": 0.3},
            }
        )
    )
    assert torch.equal(model(IDS).logits, static(IDS).logits)


def test_the_whole_knowledge_of_one_expert_gives_that_expert(family: Family) -> None:
    model: Any = load_merged(spelled(family("Llama"), mask_rate=0.0, shared_method="base_model"))
    expert = AutoModelForCausalLM.from_pretrained(family("Llama")["b"])
    with torch.no_grad(), model.routed([0.0, 1.0, 0.0]):
        assert torch.allclose(model(IDS).logits, expert(IDS).logits, atol=1e-5)


def test_filters_leave_weights_to_the_shared_expert(family: Family) -> None:
    rules = [{"filter": "q_proj", "value": 1}, {"filter": "norm", "value": 1}, {"value": 0.75}]
    model: Any = load_merged(spelled(family("Llama"), mask_rate=rules))
    hooked = {name for name, module in model.named_modules() if module._forward_hooks}
    assert "model.layers.0.self_attn.k_proj" in hooked
    assert not [name for name in hooked if "q_proj" in name or "norm" in name]


def test_branches_are_no_part_of_the_state_and_follow_the_model(llama: Any, family: Family) -> None:
    plain = AutoModelForCausalLM.from_pretrained(family("Llama")["base"])
    assert llama.state_dict().keys() == plain.state_dict().keys()
    assert llama.num_parameters() == plain.num_parameters()
    half: Any = load_merged(spelled(family("Llama")), dtype=torch.bfloat16)
    layer = half.model.layers[0].mlp.up_proj
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.bfloat16, torch.int64}
    with torch.no_grad(), half.routed(WEIGHTS), llama.routed(WEIGHTS):
        assert torch.allclose(half(IDS).logits.float(), llama(IDS).logits, atol=0.1)


@pytest.fixture(scope="session")
def adapted(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Save three LoRA adapters of a model."""

    def make(name: str) -> list[str]:
        import peft

        targets = ["c_attn", "c_fc"] if name == "GPT2" else ["q_proj", "down_proj"]
        folder, base = tmp_path_factory.mktemp("adapters"), family(name)["base"]
        for number, expert in enumerate(EXPERTS):
            torch.manual_seed(number)
            config = peft.LoraConfig(
                task_type="CAUSAL_LM",
                r=6,
                lora_alpha=12,
                target_modules=targets,
                fan_in_fan_out=name == "GPT2",
                init_lora_weights=False,
            )
            model = AutoModelForCausalLM.from_pretrained(base)
            peft.get_peft_model(model, config).save_pretrained(folder / expert)
        return [str(folder / expert) for expert in EXPERTS]

    return make


def of_adapters(base: str, adapters: Sequence[str], **given: Any) -> Recipe:
    return Recipe.from_mapping(
        {
            "merge_method": "twin_merging",
            "base_model": base,
            "models": [f"{base}+{adapter}" for adapter in adapters],
            "parameters": {"router": "fixed", "rank": 4, **given},
        }
    )


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_factors_apart_equal_rewriting_the_adapter_for_each_request(
    name: str, family: Family, adapted: Callable[[str], list[str]]
) -> None:
    base, adapters = family(name)["base"], adapted(name)
    model: Any = load_merged(of_adapters(base, adapters, lora_space="separate"))
    held = [load_file(Path(adapter) / "adapter_model.safetensors") for adapter in adapters]
    shared = {key: 0.3 * sum(one[key] for one in held) for key in held[0]}
    own = [
        {key: truncated(one[key] - shared[key], 4) for key in shared}  # A and B apart
        for one in held
    ]
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad(), model.routed(WEIGHTS):
        together = model(IDS, attention_mask=MASK).logits
    for i, row in enumerate(WEIGHTS):
        weights = {n: w.detach().clone() for n, w in plain.named_parameters()}
        adapter = {
            key: weight + sum(w * one[key] for w, one in zip(row, own, strict=True))
            for key, weight in shared.items()
        }
        for key in adapter:
            if "lora_A" in key:
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                change = 2.0 * adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
                weights[f"{module}.weight"] += change.T if name == "GPT2" else change
        call = {"input_ids": IDS[i : i + 1], "attention_mask": MASK[i : i + 1]}
        with torch.no_grad():
            expected = torch.func.functional_call(plain, weights, (), call).logits[0]
        real = MASK[i].bool()
        assert torch.allclose(together[i][real], expected[real], rtol=0, atol=2e-5)


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix.double())
    return ((u[:, :rank] * s[:rank]) @ vt[:rank]).float()


def test_adapters_touch_only_what_they_target(
    family: Family, adapted: Callable[[str], list[str]]
) -> None:
    base = family("Llama")["base"]
    model: Any = load_merged(of_adapters(base, adapted("Llama"), rank=18))
    hooked = {n.rpartition(".")[2] for n, module in model.named_modules() if module._forward_hooks}
    assert hooked == {"", "model", "q_proj", "down_proj"}
    expert: Any = load_merged(
        Recipe.from_mapping(
            {"merge_method": "passthrough", "models": [f"{base}+{adapted('Llama')[1]}"]}
        )
    )
    with torch.no_grad(), model.routed([0.0, 1.0, 0.0]):  # rank 18: three adapters of 6, all of it
        assert torch.allclose(model(IDS).logits, expert(IDS).logits, atol=1e-5)


def test_factors_apart_need_adapters(family: Family) -> None:
    with pytest.raises(MismatchError, match="factors of adapters of one rank"):
        load_merged(spelled(family("Llama"), lora_space="separate"))


def test_the_shared_expert_may_be_any_other_merge(family: Family) -> None:
    models = family("Llama")
    inner = {
        "merge_method": "linear",
        "models": [{"model": models[n], "parameters": {"weight": 1.0}} for n in EXPERTS],
    }
    recipe = spelled(models, shared_method="base_model", mask_rate=1.0).as_dict()
    model: Any = load_merged(Recipe.from_mapping({**recipe, "base_model": inner}))
    alone = load_merged(Recipe.from_mapping(inner))
    assert torch.equal(model(IDS).logits, alone(IDS).logits)


REFUSED: dict[str, Any] = {
    "tp_plan": "auto",
    "quantization_config": {"load_in_8bit": True},
    "device_map": {"model.embed_tokens": "cpu", "model.layers": "disk"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_routed_model_cannot_do_is_refused_by_name(name: str, family: Family) -> None:
    said = "offloading" if name == "device_map" else name
    with pytest.raises(RecipeError, match=said):
        load_merged(spelled(family("Llama")), **{name: REFUSED[name]})


def test_no_checkpoint_is_written_of_a_routed_merge(
    llama: Any, family: Family, tmp_path: Path
) -> None:
    recipe = spelled(family("Llama"))
    with pytest.raises(RecipeError, match="no checkpoint can hold"):
        save(recipe, tmp_path / "saved")
    with pytest.raises(RecipeError, match="no checkpoint can hold"):
        llama.save_pretrained(tmp_path / "saved")
    with pytest.raises(RecipeError, match="weighs its experts for each input"):
        merged_tensors(recipe)
    assert not (tmp_path / "saved").exists()


def test_fused_experts_must_be_left_to_the_shared_expert(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("mixtral")
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=2)
    for name in ("base", *EXPERTS):
        transformers.MixtralForCausalLM(config).save_pretrained(root / name)
    models = {name: str(root / name) for name in ("base", *EXPERTS)}
    with pytest.raises(MismatchError, match="mask_rate: "):
        load_merged(spelled(models))
    rules = [{"filter": "block_sparse_moe", "value": 1}, {"filter": "mlp", "value": 1}]
    rules = [*rules, {"value": 0.75}]
    names = {name for file in root.glob("base/*.safetensors") for name in load_file(file)}
    rules = [r for r in rules if "filter" not in r or any(str(r["filter"]) in n for n in names)]
    model: Any = load_merged(spelled(models, mask_rate=rules))
    with model.routed(WEIGHTS):
        assert torch.isfinite(model(IDS).logits).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mask_rate": 90}, "share of the weights"),
        ({"rank": 0}, "rank is 1 or more"),
        ({"rank": 4, "mask_strategy": "magnitude"}, "rank is for mask_strategy svd"),
        ({"router_weight": 0}, "not all 0"),
        ({"router": "oracle"}, "tasks of every expert"),
        ({"router": "centroid"}, "data"),
        ({"top_k": [1, 2]}, "no gradients"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(
    given: dict[str, Any], said: str, family: Family
) -> None:
    error = RecipeError if said in ("data", "no gradients") else ParameterError
    with pytest.raises(error, match=said):
        load_merged(spelled(family("Llama"), **given))
