"""What the study is made of: streams with their methods and seeds, in the order in which they run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality.map_rivals import MAPS

Values = Mapping[str, Sequence[float | str]]
_PHOTOGRAPHS = (
    "--backbone", "mobilenetv2", "--image-size", "96", "--set", "augment_flip=true", "--set",
    "classes_per_batch=10", "--set", "images_per_class=4", "--base-steps", "150", "--steps", "40",
)  # fmt: skip
_JOINT = "joint=joint:stage_steps={steps},joint_exact=joint_exact:stage_steps={steps}"
"""Three times the steps of all others, as validation chose."""
_HEADS = (
    "exact_frozen,exact_pretrained,ranpac=ranpac:width=10000:ridge=1e5,"
    "ranpac_logits=ranpac_logits:width=10000:ridge=1e5,"
    "ranpac_features=ranpac_features:width=2000:ridge=1e6,fecam,stored_head"
)
"""As validation chose them (STUDY.md)."""
_HEAD_PARTS = (
    "solved_classes,equal=exact_frozen:head.weighing=equal,lift2048=exact_frozen:head.lift=2048,"
    "ranpac_2000=ranpac:width=2000:ridge=1e5,ranpac_logits_2000=ranpac_logits:width=2000:ridge=1e5"
)
"""What makes RanPAC and our head differ: the weight of each direction, random features, how many."""


def _tuned(features: int, relations: int) -> str:
    """Return distillation of features and of relations with the weights that validation chose, and with the wide views
    for their map that it is better with."""
    return (
        f"l2_tuned=l2:weight_distill={features}:map_composites=6,"
        f"relation_tuned=relation:weight_old={relations}:map_composites=6"
    )


def _main(tuned: str) -> str:
    return f"ours,{_HEADS},{_HEAD_PARTS},distilled,{tuned},finetune,frozen_f0,{_JOINT.format(steps=120)}"


_EPOCHS = {"ldc": 400, "low_rank": 1600, "residual": 100}
"""Of maps that are trained, as validation chose: 20, as LDC's own, are 60 steps for a task of photographs."""
_MAPS = ",".join(
    f"{name}={name}:epochs={_EPOCHS[rival.kind]}" if rival.kind in _EPOCHS else name
    for name, rival in MAPS.items()
)
_RIVALS = f"ours,l2_exact,relation_exact,finetune_exact,fecd,l2,sdc_l2,{_MAPS},apr_l2=apr_l2:samples=30"
"""Those that move the trunk at every stage, or the gallery by a map of their own: far behind, and so of three seeds.
Of pseudo-replay a tenth of a task's images; all of them, as APR takes, cost ten times as much."""
_SMALL = f"ours,ours_backfill,{_HEADS},distilled,finetune"
"""Rivals that move the trunk are compared after a large base, where they lose less."""
_ALWAYS = (
    "exact_always,always_no_peer=exact_always:weight_peer=0,always_no_virtual=exact_always:weight_virtual=0,"
    "always_no_relation=exact_always:weight_old=0,"
    "always_no_composites=exact_always:weight_composites=0:map_composites=0,always_no_average=exact_always:old_share=0"
)
_PARTS = (
    f"{_ALWAYS},always_no_hold=exact_always:weight_hold=0,no_peer,no_virtual,"
    "backfill_no_peer=ours_backfill:weight_peer=0,backfill_no_virtual=ours_backfill:weight_virtual=0"
)
"""What is taken away, one at a time, where a trunk moves: on the fewest base classes, where it may matter."""
_LONGER = "ours,ours_backfill"
_LONG = "exact_frozen,faithful=faithful:learning_rate=1e-5"
_DRAWINGS = (
    "ours,exact_frozen,ranpac,ranpac_logits=ranpac_logits:width=10000:ridge=1e4,fecam,stored_head,distilled,finetune,"
    "frozen_f0"
)
"""RanPAC as validation chose it on 400 + 6 x 100."""
_CHARACTERS = ("--base-steps", "1500", "--steps", "100")
_ALPHABETS = ("--base-steps", "1500", "--steps", "40")
_TRIED: Values = {"dim": (64, 256), "weight": (1.0, 4.0), "shrinkage": (0.5, 0.8, 0.95)}
"""Of the solved head, each in place of what stands or is chosen by the stream, all else as it is."""
_WEIGHINGS: Values = {"weighing": ("ridge", "equal", "posterior")}
_PHOTOGRAPH_VALUES: Values = {**_WEIGHINGS, "new_shrinkage": (0.5, 0.8), "lift": (2048,)}
"""Of the part that compares new items, as it does until there are more classes than features."""
_DRAWING_VALUES: Values = {**_WEIGHINGS, "layer": (0.25, 0.5, 1.0), "lift": (0,)}
"""Of the part that compares all items from then on."""


def _heads(*tried: Values) -> str:
    """Return the methods that differ from `standing` in one value of the head, on the trunk of the base stage."""
    pairs = [(name, value) for values in tried for name, some in values.items() for value in some]
    return ",".join(
        [
            "standing=exact_frozen",
            *(f"{name}{value}=exact_frozen:head.{name}={value}" for name, value in pairs),
        ]
    )


@dataclass(frozen=True)
class Part:
    """One stream with its methods: a call of the command with more words."""

    name: str
    data: str
    protocol: str
    methods: str
    words: tuple[str, ...]
    seeds: str = "0,1,2,3,4"
    sealed: bool = False
    select: str = ""
    """Which images measure, where that is not for the command to say."""

    @property
    def is_of_photographs(self) -> bool:
        return "mobilenetv2" in self.words

    def argv(self, args: argparse.Namespace) -> list[str]:
        """Return the words of the command that runs this part."""
        weights = ["--weights", str(args.weights)] if self.is_of_photographs else []
        return [
            "--data", str(args.data / f"{self.data}.parquet"), "--protocol", self.protocol, "--methods", self.methods,
            "--seeds", args.seeds or self.seeds, "--select", self.select or args.select, "--name", self.name,
            "--out", str(args.out),
            *(["--work", str(args.work)] if args.work else []), *(["--commit", args.commit] if args.commit else []),
            *self.words, *weights, "--threads", str(args.threads), "--device", args.device,
            "--precision", args.precision,
        ]  # fmt: skip


PARTS = (
    Part("heads-flowers102", "flowers102", "62+4*10", _heads(_TRIED, _PHOTOGRAPH_VALUES), _PHOTOGRAPHS, "0",
         select="validation"),
    Part("heads-grocery81", "grocery81", "41+4*10", _heads(_TRIED, _PHOTOGRAPH_VALUES), _PHOTOGRAPHS, "0",
         select="validation"),
    Part("heads-omniglot-400", "omniglot", "400+6*100", _heads(_TRIED, _DRAWING_VALUES), _CHARACTERS, "0",
         select="validation"),
    Part("heads-flowers102-small", "flowers102", "12+9*10", _heads({**_WEIGHINGS, "lift": (2048,)}), _PHOTOGRAPHS, "0",
         select="validation"),
    Part("heads-grocery81-small", "grocery81", "11+7*10", _heads({**_WEIGHINGS, "lift": (2048,)}), _PHOTOGRAPHS, "0",
         select="validation"),
    Part("quality-flowers102", "flowers102", "62+4*10", _main(_tuned(20, 1000)), _PHOTOGRAPHS),
    Part("quality-grocery81", "grocery81", "41+4*10", _main(_tuned(5, 1000)), _PHOTOGRAPHS),
    Part("quality-flowers102-rivals", "flowers102", "62+4*10", f"{_RIVALS},no_peer,no_virtual", _PHOTOGRAPHS, "0,1,2"),
    Part("quality-grocery81-rivals", "grocery81", "41+4*10", f"{_RIVALS},no_peer,no_virtual", _PHOTOGRAPHS, "0,1,2"),
    Part("quality-flowers102-small", "flowers102", "12+9*10", _SMALL, _PHOTOGRAPHS),
    Part("quality-grocery81-small", "grocery81", "11+7*10", _SMALL, _PHOTOGRAPHS),
    Part("quality-flowers102-parts", "flowers102", "12+9*10", _PARTS, _PHOTOGRAPHS, "0"),
    Part("quality-flowers102-200", "flowers102", "12+9*10", _LONGER, (*_PHOTOGRAPHS[:-1], "200"), "0"),
    Part("quality-flowers102-1000", "flowers102", "12+3*30", _LONG, (*_PHOTOGRAPHS[:-1], "1000"), "0"),
    Part("quality-flowers102-blurry", "flowers102", "blurry:62+4*10", f"ours,{_HEADS},distilled", _PHOTOGRAPHS),
    Part("quality-flowers102-repeat", "flowers102", "repeat:62+4*10", f"ours,{_HEADS},distilled", _PHOTOGRAPHS),
    Part("quality-omniglot-400", "omniglot", "400+6*100", f"{_DRAWINGS},{_JOINT.format(steps=300)}",
         _CHARACTERS),
    Part("quality-omniglot-rivals", "omniglot", "400+6*100", f"{_RIVALS},{_tuned(5, 100)},adc_l2=adc_l2:samples=30",
         _CHARACTERS, "0,1,2"),
    Part("quality-alphabets", "omniglot", "alphabets:10*20", f"{_DRAWINGS},{_JOINT.format(steps=120)}",
         _ALPHABETS),
    Part("quality-alphabets-small", "omniglot", "alphabets:3*20", "ours,ours_backfill,exact_frozen,distilled",
         _ALPHABETS),
    Part("quality-alphabets-parts", "omniglot", "alphabets:3*20", f"exact_frozen,{_ALWAYS}", _ALPHABETS, "0,1,2"),
    Part("quality-alphabets-200", "omniglot", "alphabets:3*3", f"exact_frozen,{_ALWAYS}",
         (*_ALPHABETS[:-1], "200"), "0"),
    Part("quality-alphabets-1000", "omniglot", "alphabets:3*3", f"exact_frozen,{_ALWAYS}",
         (*_ALPHABETS[:-1], "1000"), "0"),
    Part("quality-alphabets-long", "omniglot", "alphabets:1*49", "ours,exact_frozen,distilled",
         ("--base-steps", "600", "--steps", "40"), "0"),
    Part("quality-omniglot-thousand", "omniglot", "400+10*100", "ours,exact_frozen,distilled",
         _ALPHABETS),
    Part("quality-caltech101", "caltech101", "50+5*10", _main(_tuned(20, 1000)), _PHOTOGRAPHS, sealed=True),
    Part("quality-caltech101-rivals", "caltech101", "50+5*10", _RIVALS, _PHOTOGRAPHS, "0,1,2", sealed=True),
)  # fmt: skip
"""In the order in which they run. The sealed stream is the last: no choice may rest on it."""
