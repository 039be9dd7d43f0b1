"""What is trained: vision tower, connector, low-rank factors; the losses; and how they are saved and read again."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from mmneurons.demo.assembly import language_model, make_tokenizer, tower_state
from mmneurons.demo.vision_tower import EfficientNetLiteConfig, EfficientNetLiteModel
from zoo.data import normalize
from zoo.fast_tower import FastTower
from zoo.lowrank import add_low_rank, low_rank_tensors

__all__ = [
    "PROMPT",
    "CaptionModel",
    "Connector",
    "Dense",
    "Ema",
    "Trained",
    "language_parts",
    "name_targets",
    "pretrained_tower",
    "read_shipped",
    "shipped_tensors",
]

# tensors of the tower that the published one does not have
OWN = ("post_layernorm.weight", "post_layernorm.bias", "position_embedding")

PROMPT = "<|im_start|>user\n<image>\nDescribe the image in few words.<|im_end|>\n<|im_start|>assistant\nAn image of"


def pretrained_tower() -> EfficientNetLiteModel:
    """The tower with the published ImageNet weights."""
    tower = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    missing, unexpected = tower.load_state_dict(tower_state(), strict=False)
    if unexpected or set(missing) != set(OWN):
        raise RuntimeError(f"the tower does not fit the published weights: {missing} {unexpected}")
    return tower


def language_parts(work: Path) -> Path:
    """The language model and its tokenizer as an ordinary folder, `work/lm`, unpacked once."""
    folder = work / "lm"
    if not (folder / "model.safetensors").exists():
        make_tokenizer().save_pretrained(folder)
        language_model().save_pretrained(folder)
    return folder


class Connector(nn.Module):
    """The same two layers as transformers' LlavaMultiModalProjector, under the same names."""

    def __init__(self, inputs: int = 1280, outputs: int = 576) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs)
        self.linear_2 = nn.Linear(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 49, 1280) -> (batch, 49, hidden)."""
        return self.linear_2(F.gelu(self.linear_1(x)))


class Dense(nn.Module):
    """Loss that compares every cell with the embeddings of the concepts' names.

    Args:
        targets: (concepts, hidden) mean input embedding of each name's tokens.
    """

    center: torch.Tensor
    directions: torch.Tensor

    def __init__(self, targets: torch.Tensor, temperature: float = 20.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("center", targets.mean(0), persistent=False)
        self.register_buffer("directions", F.normalize(targets - self.center, dim=1), persistent=False)
        self.norm = targets.norm(dim=1).mean().item()
        self.nothing = nn.Parameter(torch.randn(targets.shape[1]) * 0.02)

    def cell_scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, 49, concepts + 1) scores; the last is "nothing here"."""
        classes = torch.cat([self.directions, F.normalize(self.nothing, dim=0)[None]])
        return self.temperature * F.normalize(tokens - self.center, dim=-1) @ classes.T

    def forward(self, tokens: torch.Tensor, cells: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the cells, of the whole picture (several names share the mass), and a pull on the norm."""
        scores = self.cell_scores(tokens)
        nothing = scores.shape[-1] - 1
        cells = cells.masked_fill(cells < 0, nothing)
        weight = torch.ones(nothing + 1)
        weight[nothing] = 0.25
        local = F.cross_entropy(scores.flatten(0, 1), cells.flatten(), weight=weight, label_smoothing=0.05)
        whole = self.image_scores(scores)
        share = present / present.sum(1, keepdim=True)
        whole_loss = -(share * F.log_softmax(whole, 1)).sum(1).mean()
        length = ((tokens.norm(dim=-1) / self.norm - 1) ** 2).mean()
        return local + 0.5 * whole_loss + 0.02 * length

    @staticmethod
    def image_scores(scores: torch.Tensor) -> torch.Tensor:
        """(batch, concepts) from cells: soft maximum over the picture."""
        return torch.logsumexp(scores[..., :-1], 1)


class Trained(nn.Module):
    """Everything that is trained, in one place.

    Attributes:
        tower: Vision tower.
        connector: Connector.
        dense: Loss of the cells, which learns one vector.
        low_rank: Low-rank layers by the name of the weight they add to; empty without a language model.
    """

    def __init__(self, targets: torch.Tensor, low_rank: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self.tower = channels_last(FastTower(pretrained_tower()))
        self.connector = Connector()
        self.dense = Dense(targets)
        self.low_rank = nn.ModuleDict() if low_rank is None else low_rank

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 224, 224) uint8 -> (batch, 49, hidden) connector tokens."""
        return self.connector(self.tower(normalize(pixels)))

    def own_state(self) -> dict[str, torch.Tensor]:
        """All tensors but the language model's own."""
        return {name: tensor for name, tensor in self.state_dict().items() if ".base." not in name}


def channels_last(tower: FastTower) -> FastTower:
    """The memory layout in which convolutions run fastest."""
    for conv in tower.convs.values():
        weight = cast(nn.Conv2d, conv).weight
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return tower


class Ema:
    """Running mean of the trained tensors."""

    def __init__(self, trained: Trained, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.mean = {n: p.detach().clone() for n, p in trained.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, trained: Trained) -> None:
        """Moves the mean; its memory grows with the steps up to `decay`."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        params = dict(trained.named_parameters())
        torch._foreach_lerp_(list(self.mean.values()), [params[n].detach() for n in self.mean], 1 - decay)


def name_targets(embeddings: torch.Tensor, tokenizer, names: tuple[str, ...]) -> torch.Tensor:
    """Mean input embedding of each name's tokens, with the space before it."""
    return torch.stack([embeddings[tokenizer(" " + name).input_ids].mean(0) for name in names])


class CaptionModel:
    """The language model around the connector's tokens, in bfloat16, with trained low-rank factors.

    The prompt is the one the processor makes; all prompts have one length, so nothing needs padding but the captions,
    at their right end, where causal attention keeps it from mattering.
    """

    def __init__(self, work: Path, rank: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = language_parts(work)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # the auto class does not tell types what it loads
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.model.eval().requires_grad_(False)
        self.low_rank = add_low_rank(self.model.model, rank)
        self.embed = cast(nn.Embedding, self.model.get_input_embeddings())
        before, after = PROMPT.split("<image>")
        self.before, self.after = (self.embed(self.ids(part)[None]) for part in (before, after))
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def ids(self, text: str) -> torch.Tensor:
        """Token ids of a text."""
        return torch.tensor(self.tokenizer(text).input_ids)

    def prompt(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, 49, hidden) connector tokens -> (batch, prompt, hidden) input embeddings."""
        parts = (self.before, tokens.to(torch.bfloat16), self.after)
        return torch.cat([part.expand(len(tokens), -1, -1) for part in parts], 1)

    def loss(self, tokens: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Mean cross-entropy of the captions' tokens, end included."""
        rows = [torch.cat([self.ids(f" {caption}"), torch.tensor([self.end])]) for caption in captions]
        target = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        prompt = self.prompt(tokens)
        inputs = torch.cat([prompt, self.embed(target[:, :-1].clamp(min=0))], 1)
        hidden = self.model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, prompt.shape[1] - 1 :]
        real = target >= 0
        return F.cross_entropy(self.model.lm_head(hidden[real]).float(), target[real])

    @torch.no_grad()
    def captions(self, tokens: torch.Tensor) -> list[str]:
        """Greedy captions."""
        prompt = self.prompt(tokens)
        out = self.model.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
            max_new_tokens=32,
            do_sample=False,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        return self.tokenizer.batch_decode(out, skip_special_tokens=True)


def shipped_tensors(trained: Trained) -> dict[str, torch.Tensor]:
    """What the package ships, in half precision, under the names `assembly.add_trained` reads."""
    base = pretrained_tower().state_dict()
    tensors = {f"connector.{name}": tensor for name, tensor in trained.connector.state_dict().items()}
    for name, tensor in trained.tower.unfold(base).items():
        tensors[f"tower.{name}"] = tensor if name in OWN else tensor - base[name]
    tensors |= low_rank_tensors(trained.low_rank)
    half = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in half.values()):
        raise ValueError("a trained tensor does not fit half precision")
    return half


def read_shipped(path: Path, trained: Trained) -> None:
    """Puts the shipped tensors back where training can go on from them; the dense loss's own vector starts anew."""
    from safetensors.torch import load_file

    shipped = {name: tensor.float() for name, tensor in load_file(path).items()}
    tower = pretrained_tower()
    state = tower.state_dict()
    for name, tensor in shipped.items():
        part, _, inner = name.partition(".")
        if part == "tower":
            state[inner] = tensor if inner in OWN else state[inner] + tensor
        elif part in ("lora_a", "lora_b"):
            wrapper = trained.low_rank[inner.replace(".", "/")]
            getattr(wrapper, part[-1]).data.copy_(tensor)
    tower.load_state_dict(state)
    trained.tower = channels_last(FastTower(tower))
    trained.connector.load_state_dict(
        {name.removeprefix("connector."): t for name, t in shipped.items() if name.startswith("connector.")}
    )
