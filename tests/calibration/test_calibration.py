"""Statistics of live models, where they are kept, and the merges made of them."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import logging
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from families import drift, seeded, word_tokenizer, write_family
from torch import Tensor, nn

from merge_plugins import Recipe, merged_tensors
from merge_plugins.calibration import gram as gram_module
from merge_plugins.calibration.store import read, write
from merge_plugins.engine import open_merge
from merge_plugins.errors import CheckpointError, DataError, MergeError, RecipeError
from merge_plugins.folders import cache_folder
from merge_plugins.plugins import registry
from merge_plugins.plugins.method import RegisteredStatistic
from merge_plugins.testing import in_memory

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")
SIZE = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SIZE, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0}
LABELS = {0: "no", 1: "maybe", 2: "yes"}  # so that heads are of one task, and are merged
DEBERTA = {"relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
LLAMA = {**SIZE, "hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "tied": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "mixtral": ("MixtralForCausalLM", {**LLAMA, "num_local_experts": 3}),
    "bert": ("BertForSequenceClassification", {**BERT, "id2label": LABELS}),
    "roberta": ("RobertaForSequenceClassification", {**BERT, "id2label": LABELS}),
    "regression": ("BertForSequenceClassification", {**BERT, "num_labels": 1}),
    "deberta": ("DebertaV2ForSequenceClassification", {**BERT, **DEBERTA, "id2label": LABELS}),
    "masked": ("BertForMaskedLM", BERT),
}
GENERATES = ("llama", "tied", "gpt2", "mixtral")
CLASSIFIES = ("bert", "roberta", "regression")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer(
        ["<pad>", "<s>", "</s>", *map(str, range(61))],
        unknown="<pad>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="module")
def experts(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Return two fine-tunes of a tiny model of that kind, in float32."""
    root, made = tmp_path_factory.mktemp("experts"), dict[str, list[str]]()

    def make(kind: str) -> list[str]:
        if kind in made:
            return made[kind]
        name, settings = MODELS[kind]
        model_class = getattr(transformers, name)
        model = drift(seeded(model_class.config_class(**settings), model_class), 0.1)
        names = [f"{kind}-{i}" for i in range(2)]
        made[kind] = [*write_family(model, root, names, spread=0.1, tokenizer=tokenizer).values()]
        return made[kind]

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven texts of different lengths, some with a response, all with a label."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(7):
        words = torch.randint(0, 61, (2 + i % 5,), generator=generator).tolist()
        text = {"prompt" if i % 2 else "text": " ".join(map(str, words)), "label": i % 3}
        rows.append({**text, **({"response": f"{i} 7"} if i % 2 else {})})
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def spelled(method: str, models: Iterable[str], data: Any, **parameters: Any) -> Recipe:
    given = {"merge_method": method, "models": [*models], "data": data}
    return Recipe.from_mapping({**given, "parameters": parameters})


def merged(recipe: Recipe) -> dict[str, Tensor]:
    return {name: tensor[...] for name, tensor in merged_tensors(recipe).items()}


def stat_of(name: str, model: str, data: Any) -> Mapping[str, Tensor]:
    methods = {"fisher": ("fisher_merging", {}), "gram": ("regmean_merging", {})}
    methods["fisher_mergelm"] = ("fisher_merging", {"fisher": "mergelm"})
    method, parameters = methods[name]
    return open_merge(spelled(method, [model], data, **parameters)).sources.stat(name, 0)


def live(folder: str) -> Any:
    """The model as transformers loads it, in float64 where its code can."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    return model if config.model_type == "mixtral" else model.double()


def stored(folder: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder, "model.safetensors"))


def tokens(tokenizer: Any, data: str, *, pairs: bool) -> Iterator[tuple[Tensor, int, int]]:
    """Yield input_ids [1, n], how many of them are the prompt, and the label, row by row."""
    for line in Path(data).read_text().splitlines():
        row = json.loads(line)
        prompt, response = row.get("text", row.get("prompt")), row.get("response")
        if pairs:
            ids, n_prompt = tokenizer(prompt, response)["input_ids"], 0
        elif response:
            ids = tokenizer(f"{prompt} {response}")["input_ids"] + [tokenizer.eos_token_id]
            n_prompt = len(tokenizer(prompt)["input_ids"])
        else:
            ids, n_prompt = tokenizer(prompt)["input_ids"], 0
        yield torch.tensor([ids]), n_prompt, row["label"]


def squared_gradients(model: Any, scalar: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    scalar.backward(retain_graph=True)
    grads = {n: p.grad for n, p in model.named_parameters(remove_duplicate=False)}
    return {n: torch.zeros(()) if g is None else g.square() for n, g in grads.items()}


@functools.cache
def fisher_in_float64(folder: str, tokenizer: Any, data: str) -> dict[str, Tensor]:
    """Transcribe eq. 5 of Matena & Raffel: every example and every class on its own."""
    model, total, n_examples = live(folder), dict[str, Tensor](), 0
    generates = model.can_generate()
    for ids, n_prompt, _ in tokens(tokenizer, data, pairs=not generates):
        n_examples += 1
        log_p = model(ids).logits[0].log_softmax(-1)
        if generates:
            scored = range(max(1, n_prompt), ids.shape[1])
            terms = [(sum(log_p[t - 1, ids[0, t]] for t in scored), 1.0)]
        elif log_p.shape == (1,):
            terms = [(model(ids).logits.sum(), 1.0)]
        else:
            terms = [(log_p[y], float(log_p[y].detach().exp())) for y in range(len(log_p))]
        for scalar, probability in terms:
            for name, square in squared_gradients(model, scalar).items():
                total[name] = total.get(name, 0) + probability * square
    return {name: square / n_examples for name, square in total.items()}


def close(one: Tensor, other: Tensor, rtol: float = 1e-4) -> bool:
    """Whether tensors agree up to float32 noise relative to their largest entry."""
    assert one.shape == other.shape
    return bool((one.double() - other).abs().max() <= rtol * other.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("kind", [*(k for k in GENERATES if k != "mixtral"), *CLASSIFIES])
def test_fisher_information_is_the_papers_in_float64(
    kind: str, experts: Any, tokenizer: Any, data: str
) -> None:
    folder = experts(kind)[0]
    found = stat_of("fisher", folder, {"path": data, "batch_size": 4})
    expected = fisher_in_float64(folder, tokenizer, data)
    assert stored(folder).keys() <= found.keys() <= expected.keys()
    for name in found:
        assert close(found[name], expected[name]), name


def test_fisher_information_follows_experts_to_where_the_checkpoint_has_them(
    experts: Any, tokenizer: Any, data: str
) -> None:
    folder = experts("mixtral")[0]
    found, expected = stat_of("fisher", folder, data), fisher_in_float64(folder, tokenizer, data)
    assert found.keys() == stored(folder).keys()
    fused = {name for name in expected if name not in found}
    for name in expected.keys() - fused:
        assert close(found[name], expected[name]), name
    if not fused:
        return  # before transformers 5 a module has the names of its checkpoint
    layer = "model.layers.1"
    for i in range(3):
        stem = f"{layer}.block_sparse_moe.experts.{i}"
        gate_up = torch.cat([found[f"{stem}.w1.weight"], found[f"{stem}.w3.weight"]])
        assert close(gate_up, expected[f"{layer}.mlp.experts.gate_up_proj"][i])
        assert close(found[f"{stem}.w2.weight"], expected[f"{layer}.mlp.experts.down_proj"][i])


@pytest.mark.parametrize("kind", ["bert", "regression", "llama"])
def test_mergelms_form_squares_what_a_batch_sums_to(
    kind: str, experts: Any, tokenizer: Any, data: str
) -> None:
    folder = experts(kind)[0]
    found = stat_of("fisher_mergelm", folder, {"path": data, "batch_size": 5})
    model, total = live(folder), dict[str, Tensor]()
    every = list(tokens(tokenizer, data, pairs=kind != "llama"))
    for start in range(0, 7, 5):
        summed: Any = 0
        batch = every[start : start + 5]
        for ids, n_prompt, label in batch:
            log_p = model(ids).logits[0].log_softmax(-1)
            if kind == "llama":
                summed += sum(
                    log_p[t - 1, ids[0, t]] for t in range(max(1, n_prompt), ids.shape[1])
                )
            elif kind == "regression":
                summed += (model(ids).logits.sum() - label).square() / len(batch)
            else:
                summed += (log_p.exp().detach().sqrt() * log_p).sum()
        for name, square in squared_gradients(model, summed).items():
            total[name] = total.get(name, 0) + square / 7
    for name in found:
        assert close(found[name], total[name]), name


@functools.cache
def grams_in_float64(folder: str, tokenizer: Any, data: str) -> dict[str, Tensor]:
    """Mean of x xᵀ over tokens, one text at a time so that nothing is padded."""
    model, sums, counts = live(folder), dict[str, Tensor](), dict[str, int]()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D":

            def hook(_: Any, inputs: Any, name: str = f"{name}.weight") -> None:
                x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
                sums[name] = sums.get(name, 0) + x.T @ x
                counts[name] = counts.get(name, 0) + len(x)

            layer.register_forward_pre_hook(hook)
    classifies = "Classification" in type(model).__name__
    for ids, *_ in tokens(tokenizer, data, pairs=classifies):
        model(ids)
    return {name: sums[name] / counts[name] for name in sums}


@pytest.mark.parametrize("kind", [*GENERATES, "bert", "roberta", "deberta", "masked"])
def test_gram_matrices_are_those_of_unpadded_texts(
    kind: str, experts: Any, tokenizer: Any, data: str
) -> None:
    folder = experts(kind)[0]
    found = stat_of("gram", folder, {"path": data, "batch_size": 4})
    expected = grams_in_float64(folder, tokenizer, data)
    tied = {"tied": {"lm_head.weight"}, "gpt2": {"lm_head.weight"}}.get(kind, set())
    if kind == "masked":
        tied = {"cls.predictions.decoder.weight"}
    assert found.keys() == expected.keys() - tied
    assert found.keys() <= stored(folder).keys()
    for name in found:
        assert close(found[name], expected[name]), name


def test_gram_matrices_beyond_memory_are_made_in_several_runs(
    experts: Any, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = experts("llama")[0]
    whole = stat_of("gram", folder, data)
    shutil.rmtree(cache_folder())
    monkeypatch.setattr(gram_module, "MEMORY", 3 * 4 * 32 * 32)
    pieces = stat_of("gram", folder, data)
    files = list(cache_folder().glob("statistics/gram-*/*.safetensors"))
    assert len(files) > 3
    assert pieces.keys() == whole.keys()
    assert all(torch.equal(pieces[name], whole[name]) for name in whole)


@pytest.mark.parametrize("name", ["fisher", "gram"])
@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_how_texts_are_batched_and_padded_does_not_matter(
    name: str, kind: str, experts: Any, data: str
) -> None:
    folder = experts(kind)[0]
    alone, together = (stat_of(name, folder, {"path": data, "batch_size": size}) for size in (1, 7))
    assert alone.keys() == together.keys()
    for weight in alone:
        assert close(alone[weight], together[weight].double()), weight


# Merges.


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_fisher_merging_is_the_papers_in_float64(
    kind: str, normalize: bool, experts: Any, tokenizer: Any, data: str
) -> None:
    folders = experts(kind)
    recipe = Recipe.from_mapping(
        {
            "merge_method": "fisher_merging",
            "models": [
                {"model": folders[0], "parameters": {"fisher_scaling_coefficients": 0.3}},
                {"model": folders[1], "parameters": {"fisher_scaling_coefficients": 0.7}},
            ],
            "parameters": {"normalize_fisher_weight": normalize, "minimal_fisher_weight": 1e-4},
            "data": data,
        }
    )
    found = merged(recipe)
    information = [fisher_in_float64(folder, tokenizer, data) for folder in folders]
    weights = [stored(folder) for folder in folders]
    c = torch.tensor([0.3, 0.7]).double()
    if normalize:
        norms = [sum(f[n].square().sum() for n in weights[0]).sqrt() for f in information]
        c = c / (torch.stack(norms) + 1e-4)
    for name in weights[0]:
        importance = [c[i] * (information[i][name] + 1e-4) for i in range(2)]
        expected = sum(f * w[name] for f, w in zip(importance, weights, strict=True))
        assert close(found[name], expected / sum(importance), 1e-5), name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "tied"])
def test_regmean_is_the_papers_in_float64(
    kind: str, experts: Any, tokenizer: Any, data: str
) -> None:
    folders = experts(kind)
    found = merged(spelled("regmean_merging", folders, data))
    grams = [grams_in_float64(folder, tokenizer, data) for folder in folders]
    weights = [stored(folder) for folder in folders]
    tied = {"lm_head.weight"} if kind in ("gpt2", "tied") else set()
    for name in weights[0]:
        w = [weight[name].double() for weight in weights]
        if name not in grams[0].keys() - tied:
            expected = (w[0] + w[1]) / 2
        else:
            g = [0.9 * gram[name] + 0.1 * gram[name].diagonal().diag() for gram in grams]
            w = w if kind == "gpt2" else [one.T for one in w]  # Conv1D has its inputs first
            expected = torch.linalg.inv(g[0] + g[1]) @ (g[0] @ w[0] + g[1] @ w[1])
            expected = expected if kind == "gpt2" else expected.T
        assert close(found[name], expected, 1e-4), name


def test_what_a_model_says_of_its_rows_follows_them_into_the_merges_vocabulary(
    experts: Any, tokenizer: Any, data: str, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    plain, moved = experts("llama")[0], tmp_path / "moved"
    model = transformers.AutoModelForCausalLM.from_pretrained(experts("llama")[1])
    held = json.loads(tokenizer.backend_tokenizer.to_str())
    words = held["model"]["vocab"]
    words["60"], words["59"] = words["59"], words["60"]  # two rows change places,
    words["new"] = 64  # ... and one is only here
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(held)), eos_token="</s>", pad_token="<pad>"
    )
    model.resize_token_embeddings(65)
    model.save_pretrained(moved)
    other.save_pretrained(moved)
    given = {"merge_method": "fisher_merging", "models": [plain, str(moved)], "data": data}
    found = merged(Recipe.from_mapping({**given, "tokenizer_source": plain}))
    ours, theirs = (
        fisher_in_float64(plain, tokenizer, data),
        fisher_in_float64(str(moved), other, data),
    )
    rows = [*range(62), 63, 62]
    rows[62], rows[63] = words["59"], words["60"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        f, g = ours[name] + 1e-6, theirs[name][rows] + 1e-6
        expected = (f * stored(plain)[name] + g * stored(str(moved))[name][rows]) / (f + g)
        assert close(found[name], expected, 1e-5), name


@pytest.mark.parametrize("ratio", [1.0, 0.9])
def test_regmean_of_one_token_stays_near_its_models(
    ratio: float, experts: Any, tmp_path: Path
) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "5"}\n')
    folders = experts("llama")
    recipe = spelled(
        "regmean_merging",
        folders,
        str(tmp_path / "one.jsonl"),
        reduce_non_diagonal_ratio=ratio,
    )
    for name, weight in merged(recipe).items():
        largest = max(stored(folder)[name].abs().max() for folder in folders)
        assert weight.abs().max() <= 2 * largest, name


def test_regmean_keeps_a_models_outputs_where_the_other_has_no_inputs() -> None:
    from merge_plugins import Slot
    from merge_plugins.methods.fisher_regmean import RegMeanMerging

    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 4)
    only_first = torch.diag(torch.tensor([1.0, 2, 0, 0]))
    only_last = torch.diag(torch.tensor([0.0, 0, 3, 0]))
    slot = Slot("w", None, (a, b), {"gram": (only_first, only_last)})
    found = in_memory.merged(RegMeanMerging(), slot)
    expected = torch.cat([a[:, :2], b[:, 2:3], (a + b)[:, 3:] / 2], dim=1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_merged_experts_that_loading_fuses_are_averaged_and_named(
    experts: Any, data: str, caplog: pytest.LogCaptureFixture
) -> None:
    folders = experts("mixtral")
    with caplog.at_level(logging.WARNING):
        found = merged(spelled("regmean_merging", folders, data))
    weights = [stored(folder) for folder in folders]
    known = stat_of("gram", folders[0], data)
    for name in weights[0]:
        average = (weights[0][name] + weights[1][name]) / 2
        assert torch.allclose(found[name], average, atol=1e-6) == (name not in known), name
    fused = [name for name in weights[0] if ".experts." in name and name not in known]
    said = [record.getMessage() for record in caplog.records if "no gram" in record.getMessage()]
    assert len(said) == (1 if fused else 0)
    assert all("experts" in line for line in said)


@pytest.mark.parametrize("method", ["fisher_merging", "regmean_merging"])
def test_the_merge_is_a_live_model_and_a_checkpoint(
    method: str, experts: Any, data: str, tmp_path: Path
) -> None:
    from merge_plugins import load_merged, save

    recipe = spelled(method, experts("llama"), data)
    ids = torch.tensor([[5, 6, 7, 8]])
    logits = load_merged(recipe)(ids).logits
    written = transformers.AutoModelForCausalLM.from_pretrained(save(recipe, tmp_path / "saved"))
    assert torch.equal(written(ids).logits, logits)


def test_a_model_that_is_a_merge_is_run_without_being_written(
    experts: Any, data: str, tmp_path: Path
) -> None:
    from merge_plugins import save

    first, second = experts("llama")
    inner = {"merge_method": "linear", "parameters": {"weight": 0.5}, "models": [first, second]}
    folder = str(save(Recipe.from_mapping(inner), tmp_path / "inner"))
    found = merged(spelled("fisher_merging", [{"model": inner}, first], data))
    expected = merged(spelled("fisher_merging", [folder, first], data))
    assert all(close(found[name], expected[name].double(), 1e-6) for name in expected)


def test_a_saved_merge_finds_its_data_again(experts: Any, data: str, tmp_path: Path) -> None:
    from merge_plugins import save

    recipe = spelled("fisher_merging", experts("llama"), {"path": data, "limit": 3})
    folder = save(recipe, tmp_path / "merge")
    assert str(tmp_path) not in (folder / "merge.yaml").read_text()
    assert Recipe.load(folder) == recipe


# What cannot be calibrated.


def test_fisher_information_of_a_masked_model_is_refused(experts: Any, data: str) -> None:
    with pytest.raises(RecipeError, match=r"BertForMaskedLM is neither\. regmean_merging takes"):
        merged(spelled("fisher_merging", experts("masked"), data))


def test_mergelms_regression_needs_labels(experts: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "1 2"}\n')
    recipe = spelled(
        "fisher_merging", experts("regression"), str(tmp_path / "texts.jsonl"), fisher="mergelm"
    )
    with pytest.raises(DataError, match="add label to each row of data:"):
        merged(recipe)


def test_a_model_of_no_known_class_is_named(checkpoint: Any, data: str) -> None:
    folders = [checkpoint({"w": torch.ones(2, 2)}, architectures=["Nonsense"]) for _ in range(2)]
    with pytest.raises(CheckpointError, match="names Nonsense under architectures"):
        merged(spelled("fisher_merging", folders, data))


def test_gradients_that_are_not_finite_stop_the_merge(
    experts: Any, tokenizer: Any, data: str, tmp_path: Path
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(experts("llama")[0])
    with torch.no_grad():
        model.lm_head.weight[:, 0] = 3e38
    model.save_pretrained(tmp_path / "wild")
    tokenizer.save_pretrained(tmp_path / "wild")
    recipe = spelled("fisher_merging", [str(tmp_path / "wild"), experts("llama")[0]], data)
    with pytest.raises(MergeError, match="came out as NaN or infinity; check the model"):
        merged(recipe)
    assert not list(cache_folder().glob("statistics/*"))


@pytest.mark.parametrize(
    "parameters",
    [
        {"minimal_fisher_weight": 0},
        {"fisher_scaling_coefficients": 0},
        {"fisher_scaling_coefficients": -1},
    ],
)
def test_fisher_merging_refuses_what_it_cannot_weigh(
    parameters: dict[str, float], experts: Any, data: str
) -> None:
    with pytest.raises(RecipeError, match=next(iter(parameters))):
        open_merge(spelled("fisher_merging", experts("llama"), data, **parameters))


def test_regmean_refuses_a_ratio_beyond_one(experts: Any, data: str) -> None:
    recipe = spelled("regmean_merging", experts("llama"), data, reduce_non_diagonal_ratio=1.5)
    with pytest.raises(RecipeError, match=r"reduce_non_diagonal_ratio is a factor in \[0, 1\]"):
        open_merge(recipe)


@pytest.mark.parametrize("method", ["fisher_merging", "regmean_merging"])
def test_a_damaged_weight_of_a_model_that_is_run_is_named(
    method: str, experts: Any, tokenizer: Any, data: str, tmp_path: Path
) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(experts("llama")[0])
    with torch.no_grad():
        model.model.embed_tokens.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "damaged")
    tokenizer.save_pretrained(tmp_path / "damaged")
    recipe = spelled(method, [experts("llama")[0], str(tmp_path / "damaged")], data)
    expected = r"damaged/model.safetensors: model.embed_tokens.weight holds NaN .* at \[3, 5\]"
    with pytest.raises(CheckpointError, match=expected):
        merged(recipe)


# Kept on disk.


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace Fisher information by ones from a plugin that notes which model it is asked about."""
    asked: list[str] = []

    def ones(module: nn.Module, batches: Iterable[Any]) -> Iterator[dict[str, Tensor]]:
        """Nothing."""
        asked.append(next(iter(batches))["input_ids"].shape[0] and type(module).__name__)
        yield {name: torch.ones_like(weight) for name, weight in module.named_parameters()}

    statistic = RegisteredStatistic("fisher", ones, "tests", "1", elementwise=True)
    monkeypatch.setitem(registry().statistics, "fisher", statistic)
    return asked


def test_a_statistic_is_computed_once_for_every_merge_of_a_model(
    counted: list[str], experts: Any, data: str
) -> None:
    folders = experts("llama")
    for coefficients in (1.0, 0.5):
        for order in (folders, folders[::-1]):
            merged(spelled("fisher_merging", order, data, fisher_scaling_coefficients=coefficients))
    assert len(counted) == 2
    merged(spelled("fisher_merging", folders, {"path": data, "limit": 3}))
    assert len(counted) == 4


def test_another_version_of_a_plugin_computes_anew(
    counted: list[str], experts: Any, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = spelled("fisher_merging", experts("llama"), data)
    merged(recipe)
    newer = dataclasses.replace(registry().statistics["fisher"], version="2")
    monkeypatch.setitem(registry().statistics, "fisher", newer)
    merged(recipe)
    assert len(counted) == 4


@pytest.mark.parametrize("damage", ["truncated", "no index", "index", "missing"])
def test_a_damaged_statistic_is_made_again(
    damage: str, counted: list[str], experts: Any, data: str
) -> None:
    recipe = spelled("fisher_merging", experts("llama"), data)
    first = merged(recipe)
    folder = sorted(cache_folder().glob("statistics/fisher-*"))[0]
    (file,) = folder.glob("*.safetensors")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "missing":
        file.unlink()
    elif damage == "index":
        (folder / "index.json").write_text('{"w": 3}')
    else:
        (folder / "index.json").unlink()
    again = merged(recipe)
    assert len(counted) == 3
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert read(folder) is not None


def test_an_interrupted_run_leaves_what_was_finished_and_nothing_else(
    experts: Any, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def interrupted(module: nn.Module, batches: Iterable[Any]) -> Iterator[dict[str, Tensor]]:
        """Nothing."""
        asked.append(module)
        weights = dict(module.named_parameters())
        first = next(iter(weights))
        yield {first: torch.ones_like(weights.pop(first))}
        if len(asked) == 2:
            raise KeyboardInterrupt
        yield {name: torch.ones_like(weight) for name, weight in weights.items()}

    statistic = RegisteredStatistic("fisher", interrupted, "tests", "1", elementwise=True)
    monkeypatch.setitem(registry().statistics, "fisher", statistic)
    recipe = spelled("fisher_merging", experts("llama"), data)
    with pytest.raises(KeyboardInterrupt):
        merged(recipe)
    assert len(list((cache_folder() / "statistics").iterdir())) == 1
    merged(recipe)
    assert len(asked) == 3
    assert len(list((cache_folder() / "statistics").iterdir())) == 2


def test_several_names_of_one_tensor_are_stored_once(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    found = write(tmp_path / "s", [{"a": shared, "b": shared}, {"c": shared + 1}])
    assert found.keys() == {"a", "b", "c"}
    assert torch.equal(found["b"].view(), shared)
    assert sum(file.stat().st_size for file in (tmp_path / "s").glob("*.safetensors")) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_process_that_comes_second_keeps_what_the_first_wrote(tmp_path: Path) -> None:
    def slow() -> Iterator[dict[str, Tensor]]:
        write(tmp_path / "s", [{"a": torch.zeros(2)}])  # another process is faster
        yield {"a": torch.ones(2)}

    assert torch.equal(write(tmp_path / "s", slow())["a"].view(), torch.zeros(2))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_it_will_cost_is_said_before_it_starts(
    experts: Any, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = experts("llama")[0]
    stat_of("fisher", folder, data)
    said = capsys.readouterr().err
    assert f"fisher of {folder} on 7 examples of {data}. One backward pass per example" in said
    stat_of("fisher", folder, data)
    assert "backward" not in capsys.readouterr().err


def test_only_one_live_model_is_resident(experts: Any, data: str) -> None:
    sources = open_merge(spelled("fisher_merging", experts("llama"), data)).sources
    first = weakref.ref(sources.module(0))
    assert sources.module(0) is first()
    second = sources.module(1)
    gc.collect()
    assert first() is None
    assert not second.training
    assert {weight.dtype for weight in second.parameters()} == {torch.float32}
    assert len(sources.examples(1)) == 7
    assert next(sources.batches(1))["input_ids"].shape[0] == 7
