"""Adapters: the few parameters that are trained in place of a whole backbone, of many kinds under one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from torchgeo_debias.backbones.backbone import Backbone
from torchgeo_debias.backbones.bottleneck import add_bottlenecks
from torchgeo_debias.backbones.mixture import Experts, add_mixture
from torchgeo_debias.backbones.places import LAYERS, Layer, Where, adapter_targets, bottleneck_places
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

if TYPE_CHECKING:
    from peft import PeftConfig

Kind = Literal[
    "lora", "rslora", "dora", "adalora", "loha", "lokr", "ia3", "vera", "hra", "houlsby", "adaptformer", "plora",
    "clora",
]  # fmt: skip


class About(NamedTuple):
    """What is known of a kind.

    Attributes:
        title: In a few words.
        source: Where it was published.
        form: On which layers it goes.
        type: What ``adapter_config.json`` calls it: a type of peft, or one of :data:`OWN`.
        dropout: Whether it has one.
    """

    title: str
    source: str
    form: frozenset[Layer]
    type: str
    dropout: bool


_LINEAR: frozenset[Layer] = frozenset({"linear"})
_LAYERS: frozenset[Layer] = frozenset({"linear", "conv"})

KINDS: Mapping[Kind, About] = {
    "lora": About("low-rank update", "Hu et al., ICLR 2022", LAYERS, "LORA", True),
    "rslora": About(
        "LoRA scaled by alpha / sqrt(rank)", "Kalajdzievski, arXiv 2312.03732, 2023",
        LAYERS, "LORA", True,
    ),
    "dora": About("direction by LoRA, magnitude apart", "Liu et al., ICML 2024", _LAYERS, "LORA", True),
    "adalora": About("LoRA that shares its ranks out by need", "Zhang et al., ICLR 2023", _LAYERS, "LORA", True),
    "loha": About("product of two low-rank updates", "Hyeon-Woo et al., ICLR 2022", _LAYERS, "LOHA", False),
    "lokr": About("Kronecker product", "Yeh et al., ICLR 2024", _LAYERS, "LOKR", False),
    "ia3": About("a factor for each output", "Liu et al., NeurIPS 2022", _LAYERS, "IA3", False),
    "vera": About("two vectors between random matrices", "Kopiczko et al., ICLR 2024", _LINEAR, "VERA", True),
    "hra": About("a chain of reflections", "Yuan et al., NeurIPS 2024", _LAYERS, "HRA", False),
    "houlsby": About("bottlenecks after attention and MLP", "Houlsby et al., ICML 2019", _LAYERS, "BOTTLENECK", True),
    "adaptformer": About("bottlenecks beside the MLP", "Chen et al., NeurIPS 2022", _LAYERS, "BOTTLENECK", True),
    "plora": About("a LoRA for each cluster", "after Tian et al., arXiv 2311.17486, 2023", _LAYERS, "MIXTURE", True),
    "clora": About("a LoRA for each class", "after Tian, Chen and Sun, NeurIPS 2024", _LAYERS, "MIXTURE", True),
}  # fmt: skip

OWN = ("BOTTLENECK", "MIXTURE")
"""Types of this library, which stock peft does not open."""


@dataclass(frozen=True)
class AdapterSettings:
    """Kind, size and place of an adapter.

    Attributes:
        kind: See :data:`KINDS`. Only ``lora`` and ``rslora`` go on the attention of models that use PyTorch's
            ``nn.MultiheadAttention``.
        rank: Rank of the update, of each LoRA of a mixture, or width of a bottleneck; 8 in the released code of
            debLoRA. ``adalora`` begins with half as much again and ends with this mean, or with other ranks where early
            stopping keeps weights from before the sharing was done; ``vera`` wants many (256 in its paper); ``ia3``
            has none.
        alpha: The update is scaled by ``alpha / rank``, by ``alpha / sqrt(rank)`` in ``rslora``; ``ia3``, ``vera``,
            ``hra`` and the bottlenecks have no such scale.
        dropout: On the input of the update, in a bottleneck within it.
        where: ``attention``: projections of the attention (in a model without one: the convolutions and linear
            layers of the blocks); ``all``: the two layers of each MLP as well. Bottlenecks have places of their own.
        modules: Names of modules, or their ends as in peft, in place of ``where``; None for none.
        experts: LoRAs in a mixture ``plora``; ``clora`` has one for each class. Other kinds have one adapter.
    """

    kind: Kind = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    where: Where = "attention"
    modules: tuple[str, ...] | None = None
    experts: int = 4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"Unknown kind of adapter {self.kind!r}: choose one of {', '.join(KINDS)}.")
        if self.rank < 1:
            raise ConfigError(f"The rank of an adapter must be at least 1; received {self.rank}.")
        if not usable_alpha(self.alpha):
            raise ConfigError(f"The alpha of an adapter must lie above 0 and below a million; received {self.alpha}.")
        if self.where not in get_args(Where):
            raise ConfigError(f"An adapter goes on one of {', '.join(get_args(Where))}; received {self.where!r}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"The dropout of an adapter must lie between 0 and 1; received {self.dropout}.")
        if self.dropout and not KINDS[self.kind].dropout:
            raise ConfigError(f"Adapters of the kind {self.kind} have no dropout; received {self.dropout}, give 0.")
        if self.experts < 1:
            raise ConfigError(f"A mixture needs at least 1 expert; received {self.experts}.")
        if self.modules is not None and not self.modules:
            raise ConfigError("modules names nothing: give names of modules, or null for the usual ones.")

    @property
    def mixture(self) -> bool:
        """Whether it is one of several LoRAs that are mixed anew for each image."""
        return KINDS[self.kind].type == "MIXTURE"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AdapterSettings:
        """Read what :meth:`to_json` wrote; fields that are left out keep their defaults.

        Raises:
            ConfigError: If it is of another form.
        """
        return read_fields(cls, values)


def usable_alpha(alpha: object) -> bool:
    """Whether it is a number above 0 and below a million: beyond it, updates run over in float32 or vanish."""
    return isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 < alpha < 1e6


def add_adapter(backbone: Backbone, settings: AdapterSettings, experts: Experts | None = None) -> Backbone:
    """Freeze a backbone and put a fresh, trainable adapter on it, in place; its features stay as they are for now.

    Args:
        backbone: Without an adapter.
        settings: Kind, size and place.
        experts: Of a mixture, see :func:`~torchgeo_debias.backbones.mixture.find_experts`; None for other kinds.

    Raises:
        ConfigError: If the backbone has no module for it, or a mixture has no experts.
    """
    kind, model = KINDS[settings.kind], backbone.model
    if kind.type == "BOTTLENECK":
        places = bottleneck_places(model, settings.kind == "adaptformer", settings.modules)
        model.requires_grad_(False)
        add_bottlenecks(model, places, settings.rank, settings.dropout, beside=settings.kind == "adaptformer")
        backbone.adapter = {**settings.to_json(), "peft_type": kind.type, "modules": places}
    else:
        targets = adapter_targets(model, settings.where, kind.form, settings.modules, settings.kind)
        if kind.type == "MIXTURE":
            if experts is None:
                raise ConfigError(
                    f"The mixture {settings.kind} needs the centres of its experts, and only chips have them."
                )
            model.requires_grad_(False)
            add_mixture(model, targets, settings.rank, settings.alpha, settings.dropout, experts)
            backbone.adapter = {
                **settings.to_json(), "peft_type": kind.type, "modules": targets, "experts": len(experts.centres),
            }  # fmt: skip
        else:
            from peft import get_peft_model

            backbone.model = get_peft_model(model, _peft_config(settings, targets))
    backbone.train(backbone.training)  # some of its normalisations are frozen only now
    return backbone


def adapter_parameters(backbone: Backbone) -> int:
    """How many parameters of a backbone are trained."""
    return sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)


def _peft_config(settings: AdapterSettings, targets: list[str]) -> PeftConfig:
    import peft

    rank, alpha, dropout = settings.rank, settings.alpha, settings.dropout
    match settings.kind:
        case "lora" | "rslora" | "dora":
            return peft.LoraConfig(
                r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets,
                use_rslora=settings.kind == "rslora", use_dora=settings.kind == "dora",
            )  # fmt: skip
        case "adalora":
            # Its training sets the number of steps; see torchgeo_debias.training.ranks.
            return peft.AdaLoraConfig(
                init_r=rank + (rank + 1) // 2, target_r=rank, lora_alpha=alpha, lora_dropout=dropout,
                target_modules=targets, total_step=1,
            )  # fmt: skip
        case "loha":
            return peft.LoHaConfig(r=rank, alpha=alpha, target_modules=targets)
        case "lokr":
            return peft.LoKrConfig(r=rank, alpha=alpha, target_modules=targets)
        case "ia3":
            # In the MLP, as in the paper, what goes into its second layer.
            second = [name for name in targets if name.endswith((".mlp.fc2", ".mlp.c_proj", ".ff.net.2"))]
            return peft.IA3Config(target_modules=targets, feedforward_modules=second)
        case "vera":
            return peft.VeraConfig(r=rank, vera_dropout=dropout, target_modules=targets)
        case "hra":
            return peft.HRAConfig(r=rank, target_modules=targets)
        case _:
            raise ConfigError(f"The kind {settings.kind} is not one of peft.")
