"""Complete the config of an OpenCompass run beforehand, and check its results afterwards."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from harness_adapters.opencompass.configs import settled
from harness_adapters.opencompass.results import missing, tail
from merge_plugins.errors import MergeError, RecipeError
from merge_plugins.installing import to_install

WHOLE = {"type": "opencompass.partitioners.NaivePartitioner", "n": 10**6}
"""Partitioner that gives all data sets of a model to one process."""
CUTTER = "NumWorkerPartitioner"
"""OpenCompass's partitioner that splits large data sets over several processes."""
SCORING = (
    *("CLPInferencer", "InferencePPLOnlyInferencer", "LLInferencer", "MinKPercentInferencer"),
    *("PPLInferencer", "PPLOnlyInferencer", "SWCELossInferencer"),
)
"""Inferencers that need likelihoods of texts."""
Entry = dict[str, Any]


def read_config(file: Path) -> Entry:
    """Read a run config as plain data, with complete entries for its merges.

    Raises `MergeError` if two models or data sets would share their results, or if a chat model
    would need perplexities.
    """
    if not file.is_file():
        raise RecipeError(f"no run config at {file}; the run config is the first argument")
    try:
        from mmengine.config import Config
    except ImportError as exc:
        raise MergeError(
            f"OpenCompass cannot be imported: {exc}. With Python 3.12 or older, in an environment "
            f"of its own: {to_install('opencompass')}"
        ) from exc
    config: Entry = Config.fromfile(str(file), format_python_code=False).to_dict()
    for key in ("models", "datasets"):
        if not config.get(key):
            raise RecipeError(f"{file}: a run config has a list {key!r}; this one has none")
    folder = file.absolute().parent
    for part in (config, *config.get("model_dataset_combinations", ())):
        part["models"] = [settled(m, folder) if "recipe" in m else m for m in part["models"]]
    for kind in ("models", "datasets"):
        _refuse_equal_abbrs(kind, config[kind])
    for models, datasets in _combinations(config):
        _refuse_perplexities_of_chat(models, datasets)
    return config


def _refuse_equal_abbrs(kind: str, entries: Sequence[Entry]) -> None:
    counts = Counter(abbr(entry) for entry in entries)
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise RecipeError(
            f"{count} {kind} are called {name}; OpenCompass keeps results by that name and would "
            "show those of the first for each. Give each an abbr= of its own"
        )


def abbr(entry: Mapping[str, Any]) -> str:
    """Return OpenCompass's name of a model or data set: its ``abbr``, or the default for it."""
    if entry.get("abbr"):
        return str(entry["abbr"])
    if "reader_cfg" in entry:
        parts = [entry["path"], *([entry["name"]] if "name" in entry else [])]
    else:
        parts = [entry["type"], *Path(entry["path"]).resolve().parts[-2:]]
    return "_".join(parts).replace("/", "_")


def _combinations(config: Mapping[str, Any]) -> Iterator[tuple[list[Entry], list[Entry]]]:
    """Yield lists of models and the data sets that each of them is scored on."""
    for part in config.get("model_dataset_combinations") or (config,):
        yield part["models"], part["datasets"]


def _refuse_perplexities_of_chat(models: Sequence[Entry], datasets: Sequence[Entry]) -> None:
    chat = [m for m in models if "recipe" in m and m["type"].endswith("ChatTemplate")]
    for dataset in datasets:
        inferencer = dataset.get("infer_cfg", {}).get("inferencer", {}).get("type", "")
        kind = str(inferencer).rpartition(".")[2]
        if chat and kind in SCORING:
            base = "MergedVLLM" if "VLLM" in chat[0]["type"] else "MergedCausalLM"
            raise RecipeError(
                f"{abbr(dataset)} scores texts ({kind}), which {chat[0]['type']} cannot, as it "
                f"only chats; write type={base} for {abbr(chat[0])}, or drop the data set"
            )


class Run:
    """One run: the config, the folder that it writes, and the results that it lacks.

    ``args``: ``options`` as OpenCompass parses them; ``scratch``: a folder for temporary files;
    ``n_gpus``: number of GPUs of this machine.
    """

    def __init__(
        self, config: Entry, args: Namespace, options: Sequence[str], scratch: Path, n_gpus: int
    ) -> None:
        self.config, self.args, self.n_gpus = config, args, n_gpus
        self.sizes = scratch / "dataset_sizes.json"  # the cache it keeps in the cwd may be stale
        self._n_workers = self._fitting(options)
        if args.slurm or args.dlc:
            self._refuse_unsaid_gpus()
            if args.max_num_workers > 1 and "infer" not in config:
                config["infer"] = {"partitioner": self._cutting(args.max_num_workers)}
            return
        if "infer" not in config:
            self._refuse_too_many_gpus()
            config["infer"] = self._infer()
        if "eval" not in config:
            config["eval"] = self._stage("OpenICLEvalTask", WHOLE)

    @cached_property
    def folder(self) -> Path:
        """Folder of all that this run writes."""
        return self._work_dir / self.name

    @cached_property
    def name(self) -> str:
        """Name of the run's folder in the work dir: a time stamp, or that of a continued run."""
        if self.args.reuse == "latest" and self._work_dir.is_dir():
            return max((entry.name for entry in self._work_dir.iterdir()), default=_now())
        return self.args.reuse if self.args.reuse not in (None, "latest") else _now()

    @property
    def _work_dir(self) -> Path:
        return Path(self.args.work_dir or self.config.get("work_dir") or "outputs/default")

    def write(self, file: Path) -> None:
        """Write the config to a file that OpenCompass can read."""
        from mmengine.config import Config

        Config(self.config).dump(str(file))

    def lacks(self) -> str:
        """Describe missing results, after the last lines of their logs; "" if none is missing."""
        if self.args.dry_run or self.args.mode == "viz":
            return ""
        config = self._as_run()
        pairs = [
            (abbr(model), abbr(dataset))
            for models, datasets in _combinations(config)
            for model in models
            for dataset in datasets
        ]
        scored = self.args.mode != "infer"
        lacking = list(missing(self.folder, pairs, _pieces(config), scored=scored))
        logs = dict.fromkeys(one.log for one in lacking if one.log)
        ends = [f"{log}:\n{tail(log)}\n" for log in logs]
        advice = [f"To go on from here: the same command with -r {self.name}"] if lacking else []
        return "\n".join([*ends, *map(str, lacking), *advice])

    def _infer(self) -> Entry:
        """Configure prediction: one process per model, or as many as keep all GPUs busy."""
        n_each = self._n_workers // len(self.config["models"])
        return self._stage("OpenICLInferTask", self._cutting(n_each) if n_each > 1 else WHOLE)

    def _cutting(self, n_each: int) -> Entry:
        """Configure the partitioner that spreads a model's data sets over processes."""
        return {
            "type": f"opencompass.partitioners.{CUTTER}",
            "num_worker": n_each,
            "dataset_size_path": str(self.sizes),
        }

    def _stage(self, task: str, partitioner: Entry) -> Entry:
        return {
            "partitioner": partitioner,
            "runner": {
                "type": "opencompass.runners.LocalRunner",
                "max_num_workers": max(1, self._n_workers),
                "max_workers_per_gpu": self.args.max_workers_per_gpu,
                "task": {"type": f"opencompass.tasks.{task}"},
            },
        }

    def _fitting(self, options: Sequence[str]) -> int:
        """Compute how many processes run side by side: as many as fit on the GPUs."""
        if any(option.startswith("--max-num-w") for option in options):
            return int(self.args.max_num_workers)
        return self.n_gpus // self._n_gpus_each if self._n_gpus_each else 1

    @property
    def _n_gpus_each(self) -> int:
        each = (entry.get("run_cfg", {}).get("num_gpus", 0) for entry in self.config["models"])
        return max(map(int, each))

    def _refuse_too_many_gpus(self) -> None:
        if self._n_gpus_each > self.n_gpus:
            raise RecipeError(
                f"run_cfg asks for {self._n_gpus_each} GPUs, and {self.n_gpus} are here; write "
                f"run_cfg=dict(num_gpus={self.n_gpus})"
            )

    def _refuse_unsaid_gpus(self) -> None:
        for entry in self.config["models"]:
            if "recipe" in entry and not entry["run_cfg"].get("num_gpus"):
                raise RecipeError(
                    f"{entry['abbr']}: this machine has no GPU, so say how many its task gets on "
                    "the cluster: run_cfg=dict(num_gpus=1)"
                )

    def _as_run(self) -> Any:
        """Read the config that OpenCompass ran, where data sets with only a path have a name."""
        from mmengine.config import Config

        newest = max(self.folder.glob("configs/*.py"), key=lambda file: file.stat().st_mtime)
        return Config.fromfile(str(newest), format_python_code=False)


def _pieces(config: Any) -> dict[str, list[str]]:
    """List the abbrs of the pieces of each data set that the run's partitioner splits."""
    cutting = dict(config.get("infer", {}).get("partitioner", {}))
    if not str(cutting.pop("type", "")).endswith(CUTTER):
        return {}
    from opencompass.partitioners import NumWorkerPartitioner

    cutter = NumWorkerPartitioner(**{"out_dir": "", **cutting})
    sizes = ((one, cutter.get_size(one)) for one in config["datasets"])
    large = [one for one, size in sizes if size > cutter.min_task_size and cutter.num_split > 1]
    return {abbr(one): [piece["abbr"] for piece in cutter.split_dataset(one)] for one in large}


def _now() -> str:
    return datetime.now().strftime("%Y%m%d_%H%M%S")
