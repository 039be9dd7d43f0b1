"""From a name, a folder or a model in memory to a ``VLM``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from mmneurons.errors import AnatomyError, ModelLoadError
from mmneurons.vlm.anatomy import Anatomy
from mmneurons.vlm.discovery import find_anatomy
from mmneurons.vlm.families import FAMILIES, OUT_OF_REACH, mplug_owl2
from mmneurons.vlm.families.first_llava import convert, is_first_llava
from mmneurons.vlm.inputs import make_inputs
from mmneurons.vlm.measurement import measure
from mmneurons.vlm.model import VLM

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

__all__ = ["load", "without_bars", "wrap"]

mplug_owl2.register()


def load(
    name_or_path: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, str | int] | None = None,
    revision: str | None = None,
    quantization: QuantizationConfigMixin | None = None,
    anatomy: Anatomy | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    vision_tower: str | os.PathLike[str] | None = None,
) -> VLM:
    """Load a vision-language model of transformers and measure where its neurons are.

    Args:
        name_or_path: ``"demo"``, the name of a checkpoint on the hub, or a folder.
        dtype: of the weights; the checkpoint's own by default.
        device_map: as in transformers, where the weights go.
        revision: a branch, tag or commit of a checkpoint on the hub.
        quantization: a transformers quantization configuration. The columns of quantised write sites are asked for,
            see ``mmneurons.vlm.weights``; what is not linear then is refused.
        anatomy: where the parts are, instead of what the general rule finds. It is measured all the same.
        allow_pickle: also read weights that are not safetensors. A pickle can run any code when it is read.
        trust_remote_code: run the code that a checkpoint brings along.
        vision_tower: the folder or name of the CLIP of a first-generation LLaVA checkpoint (``liuhaotian/*``), which is
            kept apart; by default what the checkpoint names.

    Raises:
        ModelLoadError: there is no such model, no network, a file is missing, or it is not a vision-language model.
        AnatomyError: the neurons were not found, or what was found failed its measurement.
    """
    if str(name_or_path) == "demo":
        from mmneurons.demo.assembly import assemble

        source = str(assemble())
    else:
        source = _check_source(str(name_or_path))
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    if is_first_llava(Path(source)):
        tower = None if vision_tower is None else os.fspath(vision_tower)
        model, processor = convert(Path(source), tower, dtype, allow_pickle)
        return _measured(model, processor, anatomy, str(name_or_path))
    if vision_tower is not None:
        raise ModelLoadError(f"vision_tower is for the folder of a first-generation LLaVA; {source!r} is none.")
    _register_demo(source)
    config = _load_config(source, shared)
    model = _load_model(
        source,
        config,
        allow_pickle,
        {**shared, "dtype": dtype or "auto", "device_map": device_map, "quantization_config": quantization},
    )
    return _measured(model, _load_processor(source, config, shared), anatomy, str(name_or_path))


def wrap(
    model: PreTrainedModel,
    processor: ProcessorMixin | None = None,
    anatomy: Anatomy | None = None,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> VLM:
    """Take a model that is in memory already. It is not changed.

    Args:
        model: a vision-language model of transformers.
        processor: its processor. Without one, pass ``inputs`` to ``find`` and look at steps instead of words.
        anatomy: where the parts are, instead of what the general rule finds. It is measured all the same.
        inputs: what the model gets for one picture: what it is measured on where it runs on nothing else and there is
            no processor to make it.

    Raises:
        AnatomyError: the neurons were not found, or what was found failed its measurement.
    """
    return _measured(model, processor, anatomy, getattr(model, "name_or_path", "") or type(model).__name__, inputs)


@contextmanager
def without_bars() -> Iterator[None]:
    """Load without transformers' progress bars; afterwards they are as they were."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _measured(
    model: PreTrainedModel,
    processor: ProcessorMixin | None,
    anatomy: Anatomy | None,
    name: str,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> VLM:
    elsewhere = [
        weight
        for holder, module in model.named_modules()
        for weight, value in module.named_parameters(holder, recurse=False)
        if value.device.type == "meta" and not hasattr(module, "_hf_hook")
    ]
    if elsewhere:
        raise AnatomyError(
            f"{len(elsewhere)} weights of {name!r} are not here ({elsewhere[0]}, …), and nothing says where they are. "
            "Load it with device_map, so that accelerate fetches them."
        )
    vlm = VLM(model, processor, anatomy or find_anatomy(model), name)
    return VLM(model, processor, _measure(vlm, inputs), name)


def _measure(vlm: VLM, inputs: Mapping[str, torch.Tensor] | None) -> Anatomy:
    """Measure on text, or, where a model does not run on text or not in all its blocks, on a picture."""
    if inputs is not None:
        return measure(vlm, inputs)
    try:
        return measure(vlm)
    except (AnatomyError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, AnatomyError) and "never ran" not in str(error):
            raise
        if vlm.processor is None:
            raise AnatomyError(
                f"A {type(vlm.model).__name__} does not run on text alone, or not in all its blocks "
                f"({str(error).splitlines()[0]}). Pass mmn.wrap(model, processor), or inputs={{…}}: what it gets for "
                "one picture."
            ) from error
        return measure(vlm, make_inputs(vlm, Image.effect_noise((256, 256), 64).convert("RGB")).inputs)


def _check_source(source: str) -> str:
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelLoadError(f"The folder {source!r} holds no config.json: it is not a checkpoint of transformers.")
        return str(path)
    if path.is_file():
        raise ModelLoadError(f"{source!r} is a file. Pass the folder that holds config.json and the weights.")
    if "/" not in source and get_close_matches(source.lower(), ["demo"], 1, 0.75):
        raise ModelLoadError(f"There is no model {source!r}. Did you mean 'demo'?")
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    if looks_local:
        raise ModelLoadError(f"There is no folder {source!r}. Check the path; it is taken from {Path.cwd()}.")
    return source


def _register_demo(source: str) -> None:
    """The demo model's vision tower is ours, so transformers has to be told of it."""
    config = Path(source) / "config.json"
    if config.is_file() and '"efficientnet_lite"' in config.read_text(encoding="utf-8"):
        from mmneurons.demo.vision_tower import register

        register()


def _load_config(source: str, shared: Mapping[str, Any]) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(source, **shared)
    except json.JSONDecodeError as error:
        raise ModelLoadError(f"The config.json of {source!r} is not JSON: {error}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _explain(source, error) from error
    known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if (reason := OUT_OF_REACH.get(config.model_type)) is not None:
        raise ModelLoadError(f"{source!r} is of type {config.model_type!r}, which cannot be studied: {reason}.")
    remote = bool(getattr(config, "auto_map", None))
    if config.model_type not in known and config.model_type not in FAMILIES and not remote:
        raise ModelLoadError(
            f"{source!r} is of type {config.model_type!r}, which takes no pictures: mmneurons studies vision-language "
            "models, those that transformers loads with AutoModelForImageTextToText."
        )
    if config.model_type == "llava" and getattr(config, "mm_vision_tower", None):
        raise ModelLoadError(
            f"{source!r} is a first-generation LLaVA checkpoint, which transformers would silently fill with random "
            "weights. Download it (hf download), and load the folder; it is converted on the fly."
        )
    return config


def _load_model(
    source: str, config: PretrainedConfig, allow_pickle: bool, options: Mapping[str, Any]
) -> PreTrainedModel:
    options = {name: value for name, value in options.items() if value is not None}
    _check_shards(source)
    verbosity = transformers_logging.get_verbosity()
    # what is missing or left over is refused below, in one sentence instead of a table
    transformers_logging.set_verbosity_error()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source,
            config=config,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            # told below, with the names of the weights
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AssertionError, SafetensorError) as error:
        raise _explain(source, error) from error
    except (AttributeError, TypeError) as error:
        # what a family's code makes of another family's configuration
        raise _explain(source, error) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, report = loaded
    if mismatched := sorted(report["mismatched_keys"]):
        name, there, asked = mismatched[0]
        raise ModelLoadError(
            f"{len(mismatched)} weights of {source!r} have another shape than its config.json asks for: {name} is "
            f"{tuple(there)} in the file and should be {tuple(asked)}. The configuration is another model's."
        )
    if beyond := _beyond(model, report["unexpected_keys"]):
        raise ModelLoadError(
            f"{source!r} holds weights of more blocks than its config.json asks for ({', '.join(beyond[:2])}, …). The "
            "configuration is another model's."
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"{len(missing)} weights of {type(model).__name__} are not in {source!r} ({', '.join(missing[:3])}, …); "
            "transformers would fill them with random numbers. The checkpoint is of another kind or incomplete."
        )
    return model.eval()


def _check_shards(source: str) -> None:
    """See that every file of a local checkpoint that is split into several is there."""
    for index in Path(source).glob("*.safetensors.index.json") if Path(source).is_dir() else ():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelLoadError(f"{str(index)!r} is damaged: it names no files of weights. Get it again.") from error
        if missing := sorted(name for name in named if not (index.parent / name).is_file()):
            raise ModelLoadError(
                f"{len(missing)} of the {len(named)} files with the weights of {source!r} are not there: "
                f"{', '.join(missing[:3])}. Get them again; a download may have been cut off."
            )


def _beyond(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Weights of blocks that the model does not have."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    found = []
    for key in sorted(unexpected):
        for match in re.finditer(r"\.(\d+)\.", key):
            name = key[: match.start()]
            length = next((own for other, own in lists.items() if name in (other, f"model.{other}")), None)
            if length is not None and int(match[1]) >= length:
                found.append(key)
    return found


def _explain(source: str, error: Exception) -> ModelLoadError:
    text = str(error) or type(error).__name__
    local = Path(source).is_dir()
    if isinstance(error, KeyError | AttributeError | TypeError):
        return ModelLoadError(
            f"The configuration of {source!r} does not fit its kind of model: {type(error).__name__}: "
            f"{text.splitlines()[0]}. It is another model's, or of another version of transformers."
        )
    if "timm" in text:
        return ModelLoadError(
            f"{source!r} needs timm for its vision tower, and timm needs torchvision, which mmneurons does without. "
            "Models of this family cannot be studied."
        )
    if "safetensors" in text and local:
        return ModelLoadError(
            f"{source!r} holds no weights as safetensors. If it holds a .bin file that you trust (a pickle can run any "
            "code when it is read), pass allow_pickle=True; otherwise convert it."
        )
    if "trust_remote_code" in text:
        return ModelLoadError(
            f"{source!r} brings its own code. Read it, and if you trust it pass trust_remote_code=True."
        )
    if "does not recognize this architecture" in text or "model_type" in text:
        return ModelLoadError(f"transformers does not know the type of {source!r}: {text.splitlines()[0]}")
    if not local and ("connect" in text.lower() or "offline" in text.lower() or "couldn't" in text.lower()):
        return ModelLoadError(
            f"There is no folder {source!r} here, and the hub could not be asked for a model of that name. Check the "
            "name and the network, or load a folder. mmn.load('demo') needs no network."
        )
    if not local:
        return ModelLoadError(
            f"There is no folder {source!r} here, and the hub gave no model of that name: {text.splitlines()[0]} "
            "Check the spelling; a private model needs a login with 'hf auth login'."
        )
    return ModelLoadError(f"{source!r} could not be loaded: {text.splitlines()[0]}")


def _load_processor(source: str, config: PretrainedConfig, shared: Mapping[str, Any]) -> ProcessorMixin:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoProcessor.from_pretrained(source, **shared)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        # Without torchvision no video processor loads, and with it no processor that holds one. Pictures need none.
        if "video" in str(error).lower():
            return _without_video(source, config, shared)
        raise ModelLoadError(
            f"The model of {source!r} was found, but its processor was not: {str(error).splitlines()[0]} The folder "
            "needs the tokenizer's files and preprocessor_config.json or processor_config.json."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _without_video(source: str, config: PretrainedConfig, shared: Mapping[str, Any]) -> ProcessorMixin:
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise ModelLoadError(f"{source!r} needs torchvision for its video processor, and cannot do without.")
    kind: type[ProcessorMixin] = getattr(transformers, name if isinstance(name, str) else name[0])

    def get_attributes(_cls: type) -> list[str]:
        return [part for part in kind.get_attributes() if part != "video_processor"]

    # the name stays, so that what is saved from here is an ordinary checkpoint
    pictures_only = type(kind.__name__, (kind,), {"get_attributes": classmethod(get_attributes)})
    return pictures_only.from_pretrained(source, **shared)
