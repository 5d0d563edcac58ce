"""Prepare Sailor's South-East-Asian test data in DIR/sea: `merge-plugins sea-data DIR`.

The files come from Sailor's repository and are checked byte by byte, or their rows come from the
hub and are checked row by row. This package contains none of the data, and each data set keeps its
own licence. Point MERGE_PLUGINS_DATA at DIR afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from merge_plugins.cli import takes
from merge_plugins.errors import DataError
from merge_plugins.folders import complete_or_nothing

REPOSITORY = "https://github.com/sail-sg/sailor-llm"
COMMIT = "078d31d"
"""Source of the checksums below."""


class File(NamedTuple):
    """Expected number of rows and checksum of one file."""

    n_rows: int
    sha256: str


FILES: Mapping[str, File] = {
    "xquad/xquad_th.json": File(
        1149, "318f11e4999722cb3aa6faefc8e9682c8a11a794a07ab96064063dc5f7fe308b"
    ),
    "xquad/xquad_vi.json": File(
        1169, "ceb9041a34354dee11b6d2072b3a131cd5347bbd4603a63480269b4468f1cacf"
    ),
    "tydiqa_id/validation.jsonl": File(
        565, "8453c41a5620f30b5673733340fc6c842286302b5c3adb78c31129019ab12ccc"
    ),
    "xcopa/th_test.jsonl": File(
        500, "f68b3c14f6b06c2c9feec3693433a2c01aa3748c20a723a9d8abb96436d7a232"
    ),
    "xcopa/id_test.jsonl": File(
        500, "5454b42fb95b61a12e6ee6c0c2ec4bf02ee07502bbe2910674954b33582ac317"
    ),
    "xcopa/vi_test.jsonl": File(
        500, "025fb1da9988a7216809d23974661593b816beaec1186f35b8c622b74ab0d6ff"
    ),
    "belebele/tha_Thai.jsonl": File(
        900, "2d8c67cf10c35db85232e9e093c821f547c4321180fc3115ea6ac57c50b3a5f2"
    ),
    "belebele/ind_Latn.jsonl": File(
        900, "3a947540772a64575dee3cec0b203be1738d1097accaa05ab95f49690caef0a1"
    ),
    "belebele/vie_Latn.jsonl": File(
        900, "5d7b9de85ecc65f297d52af2c91d401e7ba0709050131385eb757aaa406a2d47"
    ),
    "m3exam/javanese-questions-test.json": File(
        371, "d54079d10ca607674014b6c032e5d581f0b8d0201156a4c72f1e6cb41e61501b"
    ),
    "m3exam/thai-questions-test.json": File(
        2163, "33a09777cd5984f9162cf7eae0c7e553dda2b60befb1704b5913c1ed505f8999"
    ),
    "m3exam/thai-questions-test-2.json": File(
        42, "d7323c0ab8f198538f519268f26fd339e71b87b98bfe9f9bcf677c2d5f76d9c5"
    ),
    "m3exam/thai-questions-test-4.json": File(
        1002, "e0e9e2af4db5d3b899c874a9f4ffbcf29bd6eff1c76546e121abf01044975c93"
    ),
    "m3exam/thai-questions-test-5.json": File(
        1119, "4cfa6c3fe6983b3c974fa074c31f2d5c0345ad075357ead0b3027f1491fcde58"
    ),
    "m3exam/vietnamese-questions-test.json": File(
        1789, "286cc823237ecbb568d29d93f4950a48a23e4dd8e712a6e37593c1c0a0e3b579"
    ),
    "m3exam/vietnamese-questions-test-2.json": File(
        1, "58389422e0012f0af02b3ec4be0e32d4dc64f798027e78be0ea7724b4780ae8f"
    ),
    "m3exam/vietnamese-questions-test-3.json": File(
        43, "1ccd6179cfe19c8f4b85d98be243d90d32cc90414a0d8fa6a5cc5e08a4100710"
    ),
    "m3exam/vietnamese-questions-test-4.json": File(
        1745, "c196a4ab04660abb362e523e3b58c409311ef183fcce89ec1e4fb66a61ad5e8a"
    ),
}
"""Sailor's test files, relative to DIR/sea and to eval/data of a checkout."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("folder", metavar="DIR", type=Path)
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--hub",
        action="store_true",
        help="download from the hub what it has: all but M3Exam, which is not there as Sailor "
        "worded it",
    )
    origin.add_argument(
        "--from",
        dest="checkout",
        metavar="CHECKOUT",
        type=Path,
        help=f"a clone of {REPOSITORY}; without it, one is made and thrown away",
    )


@takes(_arguments, group="data and tasks")
def main(options: argparse.Namespace) -> int:
    """Prepare test data of South-East-Asian tasks, checksums verified."""
    target: Path = options.folder / "sea"
    if options.hub and target.exists():
        raise DataError(f"{target} is there already; remove it, or name another DIR.")
    if target.exists():
        verify(target)
        sys.stdout.write(f"{target} is complete: {_summary()}.\n")
        return 0
    with (
        complete_or_nothing(target) as unfinished,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".sea-data-") as scratch,
    ):
        if options.hub:
            summary = _download(unfinished)
        else:
            checkout: Path = options.checkout or _clone(Path(scratch) / "clone")
            _copy(data_folder(checkout), unfinished)
            summary = _summary()
    sys.stdout.write(
        f"{target}: {summary}, checksums verified.\n"
        f"export MERGE_PLUGINS_DATA={target.parent.resolve()}\n"
    )
    return 0


def data_folder(checkout: Path) -> Path:
    """Find the folder of the data files in a checkout, or in a copy of its data."""
    places = [checkout / "eval" / "data", checkout / "data", checkout]
    for place in places:
        if (place / "m3exam").is_dir():
            return place
    raise DataError(
        f"{checkout} is no checkout of {REPOSITORY}: no folder {places[0] / 'm3exam'}. "
        f"Give --from the folder that 'git clone {REPOSITORY}' made."
    )


def verify(folder: Path) -> None:
    """Raise `DataError` unless a folder has every file of `FILES` with the expected checksum."""
    for name, wanted in FILES.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{folder} has no {name}; delete {folder} and run sea-data again.")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != wanted.sha256:
            raise DataError(
                f"{file} is not the file that Sailor scored: SHA-256 is {digest}, expected "
                f"{wanted.sha256}. Check out commit {COMMIT} of {REPOSITORY} without line-ending "
                f"conversion, or delete {folder} and run sea-data again."
            )


def _copy(source: Path, target: Path) -> None:
    for name in FILES:
        if not (source / name).is_file():
            raise DataError(f"{source} has no {name}; is the checkout complete?")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    verify(target)


def _download(target: Path) -> str:
    """Download the files that the hub has, check every row, and return a summary."""
    from harness_adapters.tasks.sea import rows as sea

    n_rows = 0
    for name, hub in sea.HUB.items():
        downloaded = sea.hub_rows(name)
        read = sea.read(name, downloaded)
        if (len(read), sea.fingerprint(read)) != (FILES[name].n_rows, hub.content):
            raise DataError(
                f"{hub.dataset}, {hub.config}: {len(read)} rows that are not all among the "
                f"{FILES[name].n_rows} that Sailor scored; use a checkout of {REPOSITORY} instead: "
                "merge-plugins sea-data DIR --from CHECKOUT."
            )
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in downloaded)
        (target / name).write_text("".join(lines), encoding="utf-8")
        n_rows += len(read)
    return f"{len(sea.HUB)} files of {len(FILES)} (M3Exam is not on the hub), {n_rows:,} rows"


def _clone(folder: Path) -> Path:
    as_stored = ("-c", "core.autocrlf=false")
    command = ["git", *as_stored, "clone", "--quiet", "--depth=1", REPOSITORY, str(folder)]
    alone = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(command, check=True, capture_output=True, encoding="utf-8", env=alone)
    except (OSError, subprocess.CalledProcessError) as exc:
        reason = getattr(exc, "stderr", None) or exc
        raise DataError(
            f"cannot clone {REPOSITORY}: {str(reason).strip()} Where you have a clone, give its "
            "folder: merge-plugins sea-data DIR --from CHECKOUT."
        ) from exc
    return folder


def _summary() -> str:
    return f"{len(FILES)} files, {sum(file.n_rows for file in FILES.values()):,} rows"
