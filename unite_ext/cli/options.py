"""Options that several commands have, each with its one description."""

from __future__ import annotations

from typing import Annotated

import typer

_MEMBER = "A member: Hugging Face name, folder or .gguf file. Once per member; the first leads."

Models = Annotated[list[str], typer.Option(help=_MEMBER)]
OptionalModels = Annotated[list[str] | None, typer.Option(help=_MEMBER)]
Proposals = Annotated[int, typer.Option(help="How many tokens every member proposes per step.")]
Primary = Annotated[int, typer.Option(help="Which member leads, counted from 0.")]
Weights = Annotated[list[float] | None, typer.Option(help="A member's weight, once per member; uniform by default.")]
Score = Annotated[str, typer.Option(help="logits, or probs: softmax of probabilities, flatter.")]
Duplicates = Annotated[str, typer.Option(help="repeat or drop: slots that share a member's id.")]
Combine = Annotated[
    str,
    typer.Option(
        help="mean, or product: of probabilities to the power of the members' weights, which may be negative. A member "
        "without a positive weight does not propose."
    ),
]
Boundaries = Annotated[
    str, typer.Option(help="plain: vote on tokens, as the paper; exact: on the bytes that follow the text.")
]
Chat = Annotated[bool, typer.Option(help="Put every prompt through each member's own chat template.")]
ChatTemplates = Annotated[
    list[str] | None,
    typer.Option(
        help="A Jinja file, plain ('User: ...', for a model without a template) or own; for all or once per member."
    ),
]
ChatTemplateKwargs = Annotated[
    list[str] | None,
    typer.Option(help="Variables for the chat template, as a JSON object; for all members or once per member."),
]
MethodOptions = Annotated[str | None, typer.Option(help="The method's own options, as name:value;name:value.")]
BatchSize = Annotated[int, typer.Option(help="Prompts that run side by side.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Devices = Annotated[list[str] | None, typer.Option(help="A device for all members, or once per member.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the models.")]
