"""What libraries and the Hugging Face hub complain of, in one line that says how to fix it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors

from ph2p.errors import UserError

AGAIN = "copy or download it again"
TROUBLE: tuple[tuple[type[Exception], str], ...] = (  # the first that fits: some are kinds of later ones
    (errors.GatedRepoError, "the model is gated; accept its licence on the hub and set HF_TOKEN"),
    (errors.RepositoryNotFoundError, "neither a folder nor a model on the hub; check the name, or set HF_TOKEN"),
    (errors.RevisionNotFoundError, "the hub has no such revision of it; check the revision"),
    (errors.HFValidationError, "neither a folder nor a possible name on the hub; check the name"),
)
DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
REFUSED = "the hub refuses the request; check the name and HF_TOKEN"
OUT_OF_REACH = "no folder, not all of it in the cache, and the hub out of reach; check the path, or load it once online"
LACKING = "the hub's model lacks a file; try again later"


@contextmanager
def plain_errors(name: str, advice: str = AGAIN) -> Iterator[None]:
    """Whatever goes wrong while files are loaded becomes one line: damaged ones raise errors of any kind."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{name}: a package is missing ({first_line(error)}); pip install it") from error
    except Exception as error:
        raise UserError(f"{name}: cannot be loaded ({first_line(error)}); {advice}") from error


@contextmanager
def plain_hub_errors(hub_id: str, lacking: str = LACKING) -> Iterator[None]:
    """The same for what is asked of the hub; `lacking` is said where its model has no such file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the HTTP client's own errors have no common kind in all versions
        raise UserError(f"{hub_id}: {_explain(error, lacking)}") from error


def _explain(error: Exception, lacking: str) -> str:
    """What is wrong and how to fix it; libraries wrap the hub's own errors in vaguer ones."""
    chain = list(_causes(error))
    for kind, message in TROUBLE:
        if any(isinstance(cause, kind) for cause in chain):
            return message
    if any(getattr(getattr(cause, "response", None), "status_code", None) in (401, 403) for cause in chain):
        return REFUSED
    if any(isinstance(cause, errors.LocalEntryNotFoundError) for cause in chain):
        return OUT_OF_REACH
    if any(isinstance(cause, errors.EntryNotFoundError) for cause in chain):
        return lacking
    if any(isinstance(cause, OSError) and cause.errno in DISK for cause in chain):
        return f"cannot be kept in the cache ({first_line(error)}); free space, or give another cache_dir"
    return f"the hub does not give it ({first_line(error)}); try again later"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and what was being handled then."""
    if error is not None:
        yield error
        yield from _causes(error.__cause__)
        if error.__context__ is not error.__cause__:
            yield from _causes(error.__context__)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:")
