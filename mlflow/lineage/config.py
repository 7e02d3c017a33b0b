"""The `registry:` and `signing:` sections of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(kw_only=True)
class RegistryConfig:
    """Who may promote what, and what is kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    approval_required: bool = False
    """True: `isthmus registry promote` wants `--approve-by NAME`, and the name goes into the history."""

    keep_champions: int = 3
    """`isthmus registry gc` keeps everything that the last N champions need, besides every alias."""

    allow_dirty: bool = True
    """False: a version trained or exported from a work tree with uncommitted changes is not promoted."""

    max_metric_drop: float | None = None
    """Refuse to promote when `compare_metric` on the same data is lower than the present champion's by more
    than this (0.005 = half a point). None: the comparison is shown and recorded, and decides nothing."""

    compare_metric: str = "accuracy"
    """The evaluation metric that `max_metric_drop` looks at, by its registered name; higher is better."""

    servers: tuple[str, ...] = ()
    """HOST:PORT (gRPC) of the servers whose labels `stable` and `canary` follow `champion` and `challenger`."""

    models_config: Path | None = None
    """The ModelServerConfig file of those servers; the labels are set there too, and other models kept."""

    only_model: bool = False
    """True: the servers serve this model alone, so that no `models_config` is needed to keep the others."""

    base_path: str | None = None
    """The folder above the pushed versions as the servers see it, where that is another one than here."""

    server_token_file: Path | None = None
    """File whose first line is the API token that the servers want."""

    server_ca_file: Path | None = None
    """Certificates (PEM) that vouch for servers with TLS."""

    def __post_init__(self) -> None:
        if self.keep_champions < 1:
            raise ValueError(f"registry.keep_champions is {self.keep_champions}; give 1 or more")
        if self.max_metric_drop is not None and self.max_metric_drop < 0:
            raise ValueError(
                f"registry.max_metric_drop is {self.max_metric_drop}; give 0 or more, or leave it out"
            )


@dataclass(kw_only=True)
class SigningConfig:
    """Who signs a model at export, and whose signature it must have to be pushed, promoted and served."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    key: Path | None = None
    """EC private key (PEM) that the export signs with; ISTHMUS_SIGNING_KEY wins. None: not signed."""

    certificate: Path | None = None
    """The key's own certificate (PEM), where verifiers trust certificates; ISTHMUS_SIGNING_CERTIFICATE wins."""

    certificate_chain: tuple[Path, ...] = ()
    """Certificates between `certificate` and those that the verifiers trust."""

    verification_key: Path | None = None
    """EC public key, or trusted certificates (PEM): what they did not sign is not pushed and not promoted;
    ISTHMUS_VERIFICATION_KEY wins. None: signatures are not asked for."""

    def __post_init__(self) -> None:
        if self.certificate_chain and self.certificate is None:
            raise ValueError("signing.certificate_chain goes with signing.certificate")
