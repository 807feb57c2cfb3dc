"""What a finished model does: chat, compress, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmkd.cli.options import Model, Tokens, token_count

app = typer.Typer()


@app.command()
def chat(
    model: Model,
    image: Annotated[list[Path] | None, typer.Option(help="Image to talk about; may be given several times.")] = None,
    tokens: Tokens = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
) -> None:
    """Talk to a model about images, in the terminal."""
    from mmkd.inference.chat import chat as talk

    talk(model, image or [], token_count(tokens), answer_tokens)


@app.command()
def compress(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for one safetensors file an image.")],
    tokens: Annotated[
        str | None, typer.Option(help="Tokens that an image becomes; all the model's compression tokens by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one pass.")] = 16,
) -> None:
    """Compress images to files that a model answers from later; what is there already is skipped."""
    from mmkd.inference.compress import compress_files

    typer.echo(str(compress_files(model, images, out, token_count(tokens), batch_size)))


@app.command()
def serve(
    model: Model,
    tokens: Tokens = None,
    host: Annotated[str, typer.Option(help="Address to listen on; by default only this machine reaches it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    image_cache: Annotated[int, typer.Option(min=1, help="Compressed images to remember.")] = 32,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host from which image URLs may be fetched; none by default.")
    ] = None,
    allow_folder: Annotated[
        list[Path] | None, typer.Option(help="Folder below which file:// images may be read; none by default.")
    ] = None,
) -> None:
    """Answer OpenAI-style chat completions about images, over HTTP."""
    from mmkd.inference.server import serve as run_server

    run_server(model, host, port, token_count(tokens), image_cache, answer_tokens, allow_host, allow_folder, typer.echo)
