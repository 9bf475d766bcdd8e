"""Project-trained captioners for the benchmarks: python -m benchmarks.captioner trains them, seeded, into the asset cache.

No pretrained vision-language model lies in any package, so the projector between two pretrained models is trained here, on Tux Paint's
captioned stamps. Neither is a model that anyone published; figures say how much of such a model survives, not how well it names things.

    full        EfficientNet-Lite0 + projector + all of SmolLM2-135M; only the projector is trained
    balanced    EfficientNet-Lite0 + projector + 3 of SmolLM2's 30 blocks and the tokens of the captions; all but the tower is trained

`full` is what the recipe of LLaVA gives of these parts, but its tower holds 2.4 % of the parameters: whether towers are balanced or not
hardly matters to it. In `balanced` the ratio of tower to language model is 1 : 3.3, near the 1 : 3 of BLIP-2 with FlanT5-XL.

Pairs: what is learned is "folder: caption" (" animals birds: A blackbird."). Nearly every noun of the captions occurs once, so nothing that
was seen can help to say it of a new picture; kinds of things repeat, and there a model that looks is better than one that does not.

Captions of up to 9 tokens; groups of near-duplicates stay together (`lessen.stats.image_text.split`) in train, validation (early
stop) and test. Pictures are 128 pixels a side, straight and mirrored; while the tower is frozen its features are computed once.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import assets, tiny
from lessen.models import efficientnet, vlm
from lessen.models.efficientnet import EfficientNetLite
from lessen.models.vlm import Captioner, caption_batch
from lessen.stats import image_text

SIZE, POOL = 128, 2
LONGEST = 9  # tokens of a caption
PROMPT = ":"
BLOCKS = (0, 1, 29)  # the first two and the last: what reads tokens and what writes them
SHARES = (0.68, 0.12, 0.2)
TRAINING = {"full": {"steps": 60, "learning_rate": 1e-3}, "balanced": {"steps": 100, "learning_rate": 6e-4}}
Sample = dict[str, Tensor]


class Samples:
    """Pairs as samples for `lessen.recover`: pixels (or features), token ids, labels, all of one length."""

    def __init__(self, pictures: Tensor, ids: Tensor, labels: Tensor):
        self.pictures, self.ids, self.labels = pictures, ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        # Several views of a picture follow one another after all first ones.
        return {"pixel_values": self.pictures[i], "input_ids": self.ids[i], "labels": self.labels[i]}

    def only(self, chosen: list[int]) -> "Samples":
        """Some of them, in this order."""
        places = torch.tensor(chosen, dtype=torch.int64)
        return Samples(self.pictures[places], self.ids[places], self.labels[places])

    def mirrored(self) -> "Samples":
        """Each pair, and each pair with its picture mirrored."""
        return Samples(torch.cat([self.pictures, self.pictures.flip(-1)]), self.ids.repeat(2, 1), self.labels.repeat(2, 1))

    def seen(self, model: Captioner) -> "Samples":
        """With the tower's features instead of pixels."""
        model.eval()
        with torch.no_grad():
            cells = torch.cat([model.cells(part) for part in self.pictures.split(32)])
        return Samples(cells, self.ids, self.labels)


@dataclass(frozen=True)
class Trained:
    """A captioner with its data.

    Attributes:
        model: in evaluation mode.
        train, validation, test: pairs; near-duplicates are in one of them only.
    """

    model: Captioner
    train: Samples
    validation: Samples
    test: Samples


def trained(name: str, smoke: bool = False, seed: int = 0) -> Trained:
    """The captioner `name` ("full" or "balanced"), trained if it is not in the cache; in smoke size a random one on random pictures."""
    torch.set_num_threads(1)
    if smoke:
        return _random()
    found, tokenizer, language = _pairs(), *_smollm()
    encoded = [tokenizer.encode(_told(pair), add_special_tokens=False) for pair in found]
    short = [i for i, pair in enumerate(found) if len(tokenizer.encode(f" {pair.caption}", add_special_tokens=False)) <= LONGEST]
    found, encoded = [found[i] for i in short], [encoded[i] for i in short]
    prompt, end = tokenizer.encode(PROMPT, add_special_tokens=False), tokenizer.eos_token_id
    if name == "balanced":
        rows = sorted({token for ids in [*encoded, prompt, [end]] for token in ids})
        new = {old: place for place, old in enumerate(rows)}
        encoded, prompt, end = [[new[t] for t in ids] for ids in encoded], [new[t] for t in prompt], new[end]
        language = vlm.shorter(language, list(BLOCKS), torch.tensor(rows))
    pictures = torch.stack([image_text.pixels(pair.image, SIZE, efficientnet.MEAN, efficientnet.STD) for pair in found])
    everything = Samples(pictures, *caption_batch(encoded, prompt, end))
    train, validation, test = (everything.only(part) for part in image_text.split(found, pictures, SHARES))
    model = _assembled(language, seed)
    weights = assets.cache() / "captioner" / f"{name}-{seed}.safetensors"
    if not weights.exists():
        _train(model, name, train, validation, weights, seed)
    model.load_state_dict(load_file(weights), strict=False)
    return Trained(model.eval(), train, validation, test)


def _pairs() -> list[image_text.Pair]:
    return image_text.pairs(assets.stamps())


def _told(pair: image_text.Pair) -> str:
    """What is said of a picture.

    >>> _told(image_text.Pair("animals/birds/cartoon/crow", Path("crow.png"), "A crow."))
    ' animals birds: A crow.'
    """
    return f" {' '.join(pair.name.split('/')[:-1][:2])}: {pair.caption}"


def _smollm() -> tuple[Any, nn.Module]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.material import material

    folder = material().model("shipped")
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def _assembled(language: nn.Module, seed: int) -> Captioner:
    """Pretrained parts and a projector drawn from the seed."""
    tower = efficientnet.from_published(load_file(assets.lite0()), EfficientNetLite())
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # PyTorch's initialisation knows only the global generator
        return Captioner(tower, language, dim=1280, pool=POOL).eval()


def _train(model: Captioner, name: str, train: Samples, validation: Samples, target: Path, seed: int) -> None:
    """Train on features and keep the state that is best on the validation pairs; only what was trained is written."""
    from lessen.recover.loop import recover
    from lessen.recover.losses import NextToken
    from lessen.recover.options import Options

    parts = ("projector",) if name == "full" else ("projector", "language")
    options = Options(
        name=f"train {name}", losses=(NextToken(),), batch=16, weight_decay=0.05, train=parts, evaluate_every=20, patience=2,
        precision="float32", seed=seed, **TRAINING[name],
    )  # fmt: skip
    found = recover(model, None, train.mirrored().seen(model), validation.seen(model), options, on_event=_tell)
    print(f"{name}: validation loss {found.before:.3f}, then {found.best:.3f} ({found.steps} steps)", file=sys.stderr)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if key.startswith(parts)}
    tied = "language.lm_head.weight"
    state = {key: tensor for key, tensor in state.items() if key != tied}
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(".aside")
    save_file(state, aside)
    aside.rename(target)


def _tell(event: Any) -> None:
    if event.done % 10 == 0:
        print(f"{event.phase} {event.done}/{event.total} {event.message}", file=sys.stderr, flush=True)


def _random() -> Trained:
    """A captioner of a few thousand weights on noise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**tiny.SIZES, tie_word_embeddings=True)
        tower = EfficientNetLite(((3, 2, 3, 8, 2), (5, 2, 3, 12, 2)), stem=8, dim=24)
        model = Captioner(tower, LlamaForCausalLM(config), dim=24, pool=2)
    words = torch.randint(3, 200, (24, 4), generator=random).tolist()
    everything = Samples(torch.randn(24, 3, 32, 32, generator=random), *caption_batch(words, [1], 2))
    parts = [list(range(0, 12)), list(range(12, 16)), list(range(16, 24))]
    return Trained(model.eval(), *(everything.only(part) for part in parts))


def wrong(samples: list[Sample]) -> list[Sample]:
    """Every caption with the picture of another: how much of a score does not come from looking."""
    half = len(samples) // 2
    others = [*samples[half:], *samples[:half]]
    return [{**sample, "pixel_values": other["pixel_values"]} for sample, other in zip(samples, others, strict=True)]


def main(names: list[str]) -> None:
    """Train what is not there and say how good it is on the test pairs."""
    from lessen.evaluate.captions import captions, retrieval

    for name in names or TRAINING:
        found = trained(name)
        sizes = {part: sum(p.numel() for p in getattr(found.model, part).parameters()) for part in ("vision", "projector", "language")}
        test = [found.test[i] for i in range(len(found.test))]
        print(name, sizes, {"train": len(found.train), "test": len(test)})
        print("  right pictures", captions(found.model, test), retrieval(found.model, test[:32]))
        print("  wrong pictures", captions(found.model, wrong(test)))


if __name__ == "__main__":
    main(sys.argv[1:])
