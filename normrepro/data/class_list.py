"""Lists of classes: which folders of a larger data set a run takes."""

from collections.abc import Sequence
from pathlib import Path

from normrepro.data.base import DataError

SHIPPED = Path(__file__).parent / "class_lists"


def class_names(wanted: str | Sequence[str] | None) -> list[str] | None:
    """Return the names of a class list in order; None, for all classes, stays None.

    Args:
        wanted: A list of names; or a file with one name a line, what follows a blank or `#` being
            ignored; or the name of a list that ships with the package.

    Raises:
        DataError: No such file, no name in it, or a name twice.
    """
    if wanted is None:
        return None
    names = read_names(wanted) if isinstance(wanted, str) else [str(name) for name in wanted]
    if not names:
        raise DataError(f"data.source.class_list={wanted} names no class")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"data.source.class_list={wanted} has {', '.join(twice)} more than once")
    return sorted(names)


def read_names(wanted: str) -> list[str]:
    """Read a file of names, or a shipped list."""
    path = Path(wanted).expanduser()
    if not path.is_file():
        path = SHIPPED / f"{wanted}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.txt")))
        raise DataError(
            f"data.source.class_list={wanted} is neither a file nor a list that ships with "
            f"normrepro ({known})"
        )
    lines = (line.partition("#")[0].split() for line in path.read_text("utf-8").splitlines())
    return [words[0] for words in lines if words]
