"""Fine-tune the classifiers of this folder: small LoRA adapters over helium-docs-7m, with heads of their own.

    pip install 'helium-onnx[export]' 'peft==0.21.2' 'transformers>=5.0'
    python train.py language-id --train TEXTS.jsonl
    python train.py menu-tags   --train TEXTS.jsonl

Texts are JSON Lines with ``lang`` and ``text``. ``language-id`` learns ``lang`` of snippets of any length;
``menu-tags`` learns labels that a rule makes from the text: commands of menu paths (``Print`` of ``File - Print``) and
keys (``S`` of ``Ctrl+S``). Each is written as peft writes it, beside the base model's config with the labels' names,
which peft does not keep. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from helium_onnx.tokenizer import Tokenizer

HERE = Path(__file__).parent
BASE = HERE.parent / "helium-docs-7m"
LANGUAGES = ("de", "en", "es", "fr", "it", "pt")
TAGS = ("O", "B-MENU", "I-MENU", "B-KEY", "I-KEY")
#: No loss is made of padding, and of tokens whose label is not known.
IGNORED = -100

#: Words that stand in every text of a language and, together, in no other's. Some pages of a translation are not
#: translated: what these words say of a text decides whether its ``lang`` is believed.
FUNCTION_WORDS = {
    "de": "der die das und ist nicht ein eine zu mit auf für werden wird können sie wenn oder den dem im von",
    "en": "the and is not a to of with on for be can you if or in this that are it when your",
    "es": "el la los las y es no un una de con para se puede si o en que del al su por",
    "fr": "le la les et est pas un une de avec pour vous si ou dans que du au des sur ce peut",
    "it": "il la le e è non un una di con per si se o in che del al nel può gli della",
    "pt": "o a os as e é não um uma de com para se ou em que do ao da no na pode",
}

_CAPITALIZED = r"[^\W\d_a-zß-ÿ]\w*"
_MODIFIER = r"(?:Ctrl|Strg|Alt|Shift|Umschalt|Maj|Mayús|Maiusc|Cmd|Command|Commande|Comando|Befehl)"
#: Of ``File - Page Setup`` the part behind the separator, and of ``Ctrl+S`` the key that is pressed with the modifier:
#: a causal model labels a token before it sees what follows, so a rule must be decided by what stands to the left.
RULES = (
    ("MENU", re.compile(rf"(?<=\S [-–▸>] )({_CAPITALIZED}(?: {_CAPITALIZED})*)")),
    ("KEY", re.compile(rf"{_MODIFIER} ?\+ ?((?!{_MODIFIER})\w+)")),
)


@dataclass(frozen=True)
class Task:
    """One classifier: ``model`` its class, ``rank`` and ``modules`` of the adapter, ``steps`` of training."""

    labels: tuple[str, ...]
    model: Any
    peft_type: str
    rank: int
    modules: tuple[str, ...]
    steps: int
    example: Callable[[Tokenizer, dict[str, str], random.Random], tuple[list[int], Any]]


def believed(text: str, lang: str) -> bool:
    """Whether no other language has more of its function words in ``text`` than ``lang``."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {name: sum(word in known.split() for word in words) for name, known in FUNCTION_WORDS.items()}
    return counts[lang] >= max(counts.values())


def snippet(tokenizer: Tokenizer, page: dict[str, str], chance: random.Random) -> tuple[list[int], int]:
    """Some lines of a page, short ones more often, and its language's number."""
    text = page["text"]
    for _ in range(20):
        start = chance.randrange(max(1, len(text) - 20)) if chance.random() < 0.8 else 0
        start = text.find(" ", start) + 1 if start else 0
        characters = int(np.exp(chance.uniform(np.log(20), np.log(900))))
        chosen = text[start : start + characters].strip() or text[:80]
        if believed(chosen, page["lang"]):
            break
    return tokenizer.encode(chosen), LANGUAGES.index(page["lang"])


def tagged(tokenizer: Tokenizer, page: dict[str, str], chance: random.Random) -> tuple[list[int], list[int]]:
    """Some lines of a page, more often about a key or a command than not, and a label for each token."""
    text = page["text"]
    about = next((matches for _, rule in reversed(RULES) if (matches := list(rule.finditer(text)))), None)
    place = chance.choice(about).start() - chance.randrange(200) if about else chance.randrange(len(text))
    start = text.rfind("\n", 0, max(0, place)) + 1 if chance.random() < 0.8 else 0
    text = text[start : start + 500]
    ids, offsets = tokenizer.encode_with_offsets(text)
    return ids, labels(text, offsets)


def labels(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """The rule's label of each token; IGNORED where a token stands for no character."""
    found = [IGNORED if start == end else 0 for start, end in offsets]
    for name, rule in RULES:
        for match in rule.finditer(text):
            begun = False
            for place, (start, end) in enumerate(offsets):
                if match.start(1) <= start < end <= match.end(1):
                    found[place] = TAGS.index(f"{'I' if begun else 'B'}-{name}")
                    begun = True
    return found


TASKS = {
    "language-id": Task(
        LANGUAGES, AutoModelForSequenceClassification, "SEQ_CLS", 4, ("q_proj", "v_proj"), 400, snippet
    ),
    "menu-tags": Task(
        TAGS,
        AutoModelForTokenClassification,
        "TOKEN_CLS",
        4,
        ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
        300,
        tagged,
    ),
}


def batches(
    task: Task, tokenizer: Tokenizer, pages: list[dict[str, str]], rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """``input_ids``, ``attention_mask`` and labels, padded on the right, for ever."""
    chance = random.Random(0)
    while True:
        examples = sorted((task.example(tokenizer, chance.choice(pages), chance) for _ in range(8 * rows)), key=_length)
        groups = [examples[i : i + rows] for i in range(0, len(examples), rows)]
        chance.shuffle(groups)
        for group in groups:
            longest = max(map(_length, group))
            ids = torch.tensor([example + [3] * (longest - len(example)) for example, _ in group])
            mask = torch.tensor([[1] * len(example) + [0] * (longest - len(example)) for example, _ in group])
            wanted = [
                label + [IGNORED] * (longest - len(label)) if isinstance(label, list) else label for _, label in group
            ]
            yield ids, mask, torch.tensor(wanted)


def _length(example: tuple[list[int], Any]) -> int:
    return len(example[0])


def train(name: str, pages: list[dict[str, str]], out: Path) -> None:
    """Write the adapter of task ``name`` to the folder ``out``."""
    task = TASKS[name]
    torch.manual_seed(0)
    base = task.model.from_pretrained(
        BASE,
        dtype=torch.float32,
        id2label=dict(enumerate(task.labels)),
        label2id={label: i for i, label in enumerate(task.labels)},
    )
    config = LoraConfig(
        task_type=task.peft_type,
        r=task.rank,
        lora_alpha=2 * task.rank,
        target_modules=list(task.modules),
        modules_to_save=["score"],
    )
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=task.steps)
    source = batches(task, base_tokenizer(), pages, rows=24)
    started, losses = time.monotonic(), []
    for step in range(1, task.steps + 1):
        input_ids, attention_mask, wanted = next(source)
        loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=wanted).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 25 == 0:
            print(f"step {step}: loss {np.mean(losses[-25:]):.4f}, {time.monotonic() - started:.0f} s", flush=True)
    model.peft_config["default"].base_model_name_or_path = BASE.name
    model.eval().save_pretrained(out)
    (out / "README.md").unlink()  # an empty model card
    base.config.architectures = [type(base).__name__]
    base.config.save_pretrained(out)


def base_tokenizer() -> Tokenizer:
    """That of the base model."""
    return Tokenizer.from_folder(BASE, vocab_size=6000, bos_token_id=1, eos_token_ids=(2,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--train", type=Path, required=True, help="JSON Lines with lang and text")
    parser.add_argument("--out", type=Path, help="folder of the adapter (default: beside this script)")
    options = parser.parse_args()
    with options.train.open(encoding="utf-8") as lines:
        pages = [page for line in lines if believed((page := json.loads(line))["text"], page["lang"])]
    train(options.task, pages, options.out or HERE / options.task)


if __name__ == "__main__":
    main()
