"""Unpack the official ILSVRC-2012 archives into train/<wnid>/ and val/<wnid>/.

Nothing is unpacked twice: a class of the training archive lies under another name until it is
complete, and so does each validation image; what is complete is left alone.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import NoReturn

# The names and MD5 sums that image-net.org gives (torchvision checks the same), and the sizes.
ARCHIVES = {
    "ILSVRC2012_img_train.tar": ("1d675b47d978889d74fa0da5fadfb00e", 147897477120),
    "ILSVRC2012_img_val.tar": ("29b22e2961454d5413ddabcf34fc5622", 6744924160),
    "ILSVRC2012_devkit_t12.tar.gz": ("fa75699e90414af021442c21a62c3abf", None),
}
TRAIN, VAL, DEVKIT = ARCHIVES
COUNTS = {"classes": 1000, "train": 1281167, "val": 50000}
CHECKED = ".checked.json"  # the archives whose sums were right, by size and time


def main() -> None:
    args = parser().parse_args()
    sums = dict(zip(ARCHIVES, args.md5, strict=True)) if args.md5 else None
    args.dest.mkdir(parents=True, exist_ok=True)
    for name in ARCHIVES:
        check(args.archives / name, sums, args.dest)
    try:
        wnids, truth = devkit(args.archives / DEVKIT)
        unpack_val(args.archives / VAL, args.dest / "val", [wnids[i] for i in truth])
        unpack_train(args.archives / TRAIN, args.dest / "train", set(wnids.values()))
    except (tarfile.TarError, OSError, KeyError) as error:
        end(f"{error!r}. Mend it and start the same command again: what is unpacked stays")
    count(args.dest, dict(zip(COUNTS, args.counts or COUNTS.values(), strict=True)))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("archives", type=Path, help=f"folder that holds {', '.join(ARCHIVES)}")
    result.add_argument("dest", type=Path, help="folder to fill; about 155 GB")
    result.add_argument("--md5", nargs=3, help="other sums than the official ones, in that order")
    result.add_argument("--counts", nargs=3, type=int, help="other numbers of classes and images")
    return result


def end(message: str) -> NoReturn:
    sys.exit(f"error: {message}")


# -- archives --------------------------------------------------------------------------------------


def check(path: Path, sums: dict[str, str] | None, dest: Path) -> None:
    """Compare an archive's size and MD5 sum with the official ones, once."""
    if not path.is_file():
        end(f"{path} is missing: download it from image-net.org (an account is needed)")
    stat, (wanted, size) = path.stat(), ARCHIVES[path.name]
    if sums:
        wanted, size = sums[path.name], None
    if size is not None and stat.st_size != size:
        end(f"{path} has {stat.st_size} bytes, not {size}: download it again")
    memory = dest / CHECKED
    seen = json.loads(memory.read_text()) if memory.exists() else {}
    mark = [stat.st_size, stat.st_mtime_ns, wanted]
    if seen.get(path.name) == mark:
        return
    print(f"checking the MD5 sum of {path.name}", flush=True)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != wanted:
        end(f"{path} has the MD5 sum {found}, not {wanted}: download it again")
    write(memory, json.dumps(seen | {path.name: mark}).encode())


def devkit(path: Path) -> tuple[dict[int, str], list[int]]:
    """Return the wnid of each class number, and the class numbers of the validation images."""
    from scipy.io import loadmat

    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            for name in ("data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"):
                if member.name.endswith(name):
                    files[name] = archive.extractfile(member).read()
    meta, truth = files["data/meta.mat"], files["data/ILSVRC2012_validation_ground_truth.txt"]
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True, struct_as_record=False)["synsets"]
    leaves = [s for s in synsets if s.num_children == 0]  # the rest are nodes of WordNet's tree
    return {int(s.ILSVRC2012_ID): str(s.WNID) for s in leaves}, [int(n) for n in truth.split()]


# -- images ----------------------------------------------------------------------------------------


def unpack_val(path: Path, folder: Path, wnids: list[str]) -> None:
    """Put validation image i (ILSVRC2012_val_0000000i.JPEG, from 1) into the i-th wnid's folder."""
    for wnid in sorted(set(wnids)):
        (folder / wnid).mkdir(parents=True, exist_ok=True)
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():
                name = Path(member.name).name
                number = int(Path(name).stem.rpartition("_")[2])
                target = folder / wnids[number - 1] / name
                if not target.exists():
                    write(target, archive.extractfile(member).read())
    print(f"{folder} is complete", flush=True)


def unpack_train(path: Path, folder: Path, wnids: set[str]) -> None:
    """Unpack the archive of archives <wnid>.tar, class by class."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path) as archive:
        for member in archive:
            wnid, target = Path(member.name).stem, folder / Path(member.name).stem
            if not member.isfile() or target.exists():
                continue
            if wnid not in wnids:
                end(f"{path} has a class {wnid} that the development kit does not know")
            partial = folder / f".{wnid}.part"
            shutil.rmtree(partial, ignore_errors=True)
            with tarfile.open(fileobj=archive.extractfile(member)) as images:
                images.extractall(partial, filter="data")
            partial.rename(target)
            print(f"{target} is complete", flush=True)


def write(path: Path, content: bytes) -> None:
    """Write a file that is whole as soon as it has its name."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)


def count(dest: Path, wanted: dict[str, int]) -> None:
    """Compare what lies there with what ILSVRC-2012 has."""
    found = {"classes": sum(1 for p in (dest / "train").iterdir() if p.name[0] != ".")}
    for split in ("train", "val"):
        names = (name for _, _, files in os.walk(dest / split) for name in files)
        found[split] = sum(1 for name in names if not name.startswith("."))
    if found != wanted:
        end(f"{dest} has {found}, not {wanted}: delete the folder that is short, and start again")
    print(f"{dest} has {found}: data.root={dest}")


if __name__ == "__main__":
    main()
