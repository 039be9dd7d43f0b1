"""What can go wrong, and what to do about it: every error of ours, each with a page in ``docs/errors/``."""

__all__ = [
    "AnatomyError",
    "DemoPartsMissingError",
    "EditError",
    "ExtraMissingError",
    "MMNeuronsError",
    "ModelLoadError",
    "NounPipelineMissingError",
    "OptionError",
    "PictureError",
    "RecordingError",
    "RunError",
    "SourceError",
    "WordNotFoundError",
]


class MMNeuronsError(Exception):
    """The parent of all errors that a user can do something about.

    The message says what was seen and what to do next; ``page`` names the page of the documentation that says more.
    """

    page: str = "index"

    def __str__(self) -> str:
        # not super(): a KeyError would show its message as a quoted literal
        return f"{Exception.__str__(self)}\n(more: docs/errors/{self.page}.md)"


class ModelLoadError(MMNeuronsError):
    """A model could not be loaded: an unknown name, a missing file, no network, or not a vision-language model."""

    page = "model-load"


class DemoPartsMissingError(ModelLoadError):
    """The packages that the demo model is put together from are not installed."""

    page = "demo-parts-missing"


class AnatomyError(MMNeuronsError):
    """Where the neurons are was not found, or what was found failed its measurement."""

    page = "anatomy"


class EditError(MMNeuronsError):
    """An edit cannot be made, read, put in force or withdrawn as asked."""

    page = "edit"


class PictureError(MMNeuronsError):
    """A picture could not be read."""

    page = "picture"


class SourceError(MMNeuronsError):
    """What was named as pictures holds none, does not exist, or does not say where its pictures are."""

    page = "source"


class RunError(MMNeuronsError):
    """A run folder cannot be used as asked: of another model or other options, in use, or not a run folder."""

    page = "run"


class ExtraMissingError(MMNeuronsError):
    """A package that only some commands need is not installed."""

    page = "extra-missing"


class RecordingError(MMNeuronsError):
    """A generation could not be recorded as asked."""

    page = "recording"


class OptionError(MMNeuronsError, ValueError):
    """An option has a value that it cannot have."""

    page = "option"


class NounPipelineMissingError(MMNeuronsError):
    """No spaCy pipeline is installed to find the nouns of a caption."""

    page = "noun-pipeline-missing"


class WordNotFoundError(MMNeuronsError, KeyError):
    """The caption does not hold the word that was asked for."""

    page = "word-not-found"
